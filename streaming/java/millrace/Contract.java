package millrace;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;

import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonProcessingException;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;

/** The event contract as data: what features/events.py says, handed over as JSON by streaming/flink_sql.py. */
final class Contract {
    /** How a field's text is read. */
    enum Kind { ID, INTEGER, EVENT_TYPE }

    /** One field of an event; {@code place} is its place in the output, from 0. */
    record Field(
            String name, int place, Kind kind, Set<String> requiredFor, int maxBytes, long minimum, long maximum) {
        String missing() {
            return "missing:" + name;
        }

        String invalid() {
            return "invalid:" + name;
        }
    }

    final List<Field> fields = new ArrayList<>();
    final Map<String, Field> byName = new HashMap<>();
    final Field eventType;
    final Field eventTime;
    final Set<String> eventTypes;
    final int maxEventBytes;
    final long futureSkewMs;
    final Pattern id;
    final Pattern integer;

    Contract(String json) {
        JsonNode root;
        try {
            root = new ObjectMapper().readTree(json);
        } catch (JsonProcessingException error) {
            throw new IllegalArgumentException("the contract that read_event was given is not JSON: " + json, error);
        }
        for (JsonNode field : root.get("fields")) {
            Field read = new Field(
                    field.get("name").asText(), fields.size(), Kind.valueOf(field.get("kind").asText().toUpperCase()),
                    texts(field.get("required_for")), field.get("max_bytes").asInt(), field.get("minimum").asLong(),
                    field.get("maximum").asLong());
            fields.add(read);
            byName.put(read.name(), read);
        }
        eventType = fields.stream().filter(field -> field.kind() == Kind.EVENT_TYPE).findFirst().orElseThrow();
        eventTime = byName.get("event_time_ms");
        eventTypes = texts(root.get("event_types"));
        maxEventBytes = root.get("max_event_bytes").asInt();
        futureSkewMs = root.get("future_skew_ms").asLong();
        id = Pattern.compile(root.get("id_pattern").asText());
        integer = Pattern.compile(root.get("integer_pattern").asText());
    }

    private static Set<String> texts(JsonNode list) {
        Set<String> texts = new HashSet<>();
        list.forEach(text -> texts.add(text.asText()));
        return texts;
    }
}
