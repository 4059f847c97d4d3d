package millrace;

import org.apache.flink.table.annotation.ArgumentHint;
import org.apache.flink.table.annotation.ArgumentTrait;
import org.apache.flink.table.annotation.DataTypeHint;
import org.apache.flink.table.annotation.StateHint;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.functions.ProcessTableFunction;
import org.apache.flink.types.Row;

/** {@code mark_copies(TABLE … PARTITION BY key)}: the rows as they come, {@code is_copy} false for a key's first. */
@DataTypeHint(value = "ROW<is_copy BOOLEAN>", bridgedTo = RowData.class)
public class MarkCopies extends ProcessTableFunction<RowData> {
    private static final long serialVersionUID = 1L;

    /** What is remembered of a key, as long as the job's state lives. */
    public static class Seen {
        public boolean before;
    }

    /** Called once a row. */
    public void eval(
            @StateHint Seen seen,
            @ArgumentHint({ArgumentTrait.SET_SEMANTIC_TABLE, ArgumentTrait.PASS_COLUMNS_THROUGH}) Row events) {
        collect(GenericRowData.of(seen.before));
        seen.before = true;
    }
}
