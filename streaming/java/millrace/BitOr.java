package millrace;

import org.apache.flink.table.functions.AggregateFunction;

/** {@code bit_or(mask)}: the bitwise or of 64-bit integers, as Spark has it; null where none is given. */
public class BitOr extends AggregateFunction<Long, BitOr.Bits> {
    private static final long serialVersionUID = 1L;

    /** The masks so far; every mask has a bit, so 0 stands for none. */
    public static class Bits {
        public long mask;
    }

    @Override
    public Bits createAccumulator() {
        return new Bits();
    }

    /** Adds one mask. */
    public void accumulate(Bits bits, Long mask) {
        if (mask != null) {
            bits.mask |= mask;
        }
    }

    @Override
    public Long getValue(Bits bits) {
        return bits.mask == 0 ? null : bits.mask;
    }
}
