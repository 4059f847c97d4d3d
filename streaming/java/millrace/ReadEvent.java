package millrace;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.regex.Matcher;

import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.StreamReadConstraints;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.catalog.DataTypeFactory;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;
import org.apache.flink.table.functions.ScalarFunction;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.inference.InputTypeStrategies;
import org.apache.flink.table.types.inference.TypeInference;

/**
 * {@code read_event(contract, value, arrival_ms)}: reads one record under the event contract, in one pass over its JSON.
 *
 * <p>Gives a row: {@code reason} (null for a valid event, else the first broken rule as
 * features/events.py names it) and the contract's fields in its order, typed; all null where the record is refused.
 * It knows no field and no rule but those in {@code contract}, a literal.
 */
public class ReadEvent extends ScalarFunction {
    private static final long serialVersionUID = 1L;
    /** What a number with a fraction or an exponent is read as: neither an identifier nor an integer. */
    private static final String NO_INTEGER = "not an integer";

    private transient Contract contract;
    private transient JsonFactory json;
    private transient Matcher id;
    private transient Matcher integer;
    private transient String[] texts;

    @Override
    public TypeInference getTypeInference(DataTypeFactory factory) {
        return TypeInference.newBuilder()
                .inputTypeStrategy(InputTypeStrategies.sequence(
                        InputTypeStrategies.explicit(DataTypes.STRING().bridgedTo(StringData.class)),
                        InputTypeStrategies.explicit(DataTypes.BYTES()),
                        InputTypeStrategies.explicit(DataTypes.BIGINT())))
                .outputTypeStrategy(call -> call.getArgumentValue(0, String.class).map(ReadEvent::rowType))
                .build();
    }

    private static DataType rowType(String contract) {
        List<DataTypes.Field> fields = new ArrayList<>();
        fields.add(DataTypes.FIELD("reason", DataTypes.STRING().bridgedTo(StringData.class)));
        for (Contract.Field field : new Contract(contract).fields) {
            boolean number = field.kind() == Contract.Kind.INTEGER;
            fields.add(DataTypes.FIELD(
                    field.name(), number ? DataTypes.BIGINT() : DataTypes.STRING().bridgedTo(StringData.class)));
        }
        return DataTypes.ROW(fields.toArray(DataTypes.Field[]::new)).bridgedTo(RowData.class);
    }

    /**
     * False, though it is deterministic, so that it is called once a record: the planner merges no two projections
     * where the upper one mentions a non-deterministic column of the lower one twice.
     */
    @Override
    public boolean isDeterministic() {
        return false;
    }

    /** Called once a record. */
    public RowData eval(StringData rules, byte[] value, Long arrivalMs) {
        if (contract == null) {
            prepare(new Contract(rules.toString()));
        }
        String reason = read(value, arrivalMs);
        GenericRowData row = new GenericRowData(contract.fields.size() + 1);
        row.setField(0, StringData.fromString(reason));
        for (Contract.Field field : contract.fields) {
            String text = reason == null ? texts[field.place()] : null;
            row.setField(field.place() + 1, text == null ? null : typed(field, text));
        }
        return row;
    }

    private void prepare(Contract given) {
        contract = given;
        // A record is short, so its numbers are; by default one of more than 1,000 digits would be an error.
        json = JsonFactory.builder()
                .streamReadConstraints(StreamReadConstraints.builder().maxNumberLength(given.maxEventBytes).build())
                .build();
        id = given.id.matcher("");
        integer = given.integer.matcher("");
        texts = new String[given.fields.size()];
    }

    private static Object typed(Contract.Field field, String text) {
        return field.kind() == Contract.Kind.INTEGER ? (Object) Long.parseLong(text) : StringData.fromString(text);
    }

    /** Fills {@code texts} and returns the first broken rule; null where none is. */
    private String read(byte[] value, long arrivalMs) {
        if (value != null && value.length > contract.maxEventBytes) {
            return "oversized";
        }
        if (value == null || !parse(value)) {
            return "unparsable";
        }
        String type = texts[contract.eventType.place()];
        if (type == null) {
            return contract.eventType.missing();
        }
        if (!contract.eventTypes.contains(type)) {
            return contract.eventType.invalid();
        }
        for (Contract.Field field : contract.fields) {
            String text = texts[field.place()];
            if (text == null) {
                if (field.requiredFor().contains(type)) {
                    return field.missing();
                }
            } else if (!valid(field, text)) {
                return field.invalid();
            }
        }
        long aheadMs = Long.parseLong(texts[contract.eventTime.place()]) - arrivalMs;
        return aheadMs > contract.futureSkewMs ? "future_event_time" : null;
    }

    private boolean valid(Contract.Field field, String text) {
        switch (field.kind()) {
            case EVENT_TYPE:
                return true;
            case ID:
                return text.length() <= field.maxBytes() && id.reset(text).matches();
            default:
                if (!integer.reset(text).matches()) {
                    return false;
                }
                long number = Long.parseLong(text);
                return field.minimum() <= number && number <= field.maximum();
        }
    }

    /** Whether the bytes are one JSON object in UTF-8 and nothing else; the last of equal names counts. */
    private boolean parse(byte[] value) {
        Arrays.fill(texts, null);
        try (JsonParser parser = json.createParser(decoded(value))) {
            if (parser.nextToken() != JsonToken.START_OBJECT) {
                return false;
            }
            while (parser.nextToken() != JsonToken.END_OBJECT) {
                Contract.Field field = contract.byName.get(parser.currentName());
                String text = text(parser, parser.nextToken());
                if (field != null) {
                    texts[field.place()] = text;
                }
            }
            return parser.nextToken() == null;
        } catch (IOException error) {
            return false;
        }
    }

    /** The text of a string, number or boolean; null for null, an object or an array, which is passed over. */
    private static String text(JsonParser parser, JsonToken token) throws IOException {
        switch (token) {
            case VALUE_STRING:
                return parser.getText();
            case VALUE_NUMBER_INT:
                String literal = parser.getText();
                return literal.equals("-0") ? "0" : literal;
            case VALUE_NUMBER_FLOAT:
                return NO_INTEGER;
            case VALUE_TRUE:
            case VALUE_FALSE:
                return parser.getText();
            default:
                parser.skipChildren();
                return null;
        }
    }

    private static String decoded(byte[] value) throws CharacterCodingException {
        for (byte unit : value) {
            if (unit < 0) {
                return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(value)).toString();
            }
        }
        return new String(value, StandardCharsets.ISO_8859_1);
    }
}
