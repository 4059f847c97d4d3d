CREATE TABLE events_topic (
  `value` BYTES,
  `arrival` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  `partition` INT METADATA VIRTUAL,
  `offset` BIGINT METADATA VIRTUAL,
  `proctime` AS PROCTIME()
) WITH (
  'connector' = 'kafka',
  'topic' = 'millrace.events',
  'properties.bootstrap.servers' = 'broker:9092',
  'format' = 'raw',
  'scan.startup.mode' = 'earliest-offset',
  'properties.group.id' = 'millrace-stream-v0',
  'properties.isolation.level' = 'read_committed'
);

CREATE TABLE dead_letters (
  `reason` STRING,
  `partition` INT,
  `offset` BIGINT,
  `arrival_ms` BIGINT,
  `value` STRING,
  `value_base64` STRING
) WITH (
  'connector' = 'kafka',
  'topic' = 'millrace.dead-letters.v0',
  'properties.bootstrap.servers' = 'broker:9092',
  'format' = 'json',
  'json.encode.ignore-null-fields' = 'true',
  'sink.delivery-guarantee' = 'at-least-once',
  'properties.linger.ms' = '5',
  'properties.compression.type' = 'lz4',
  'properties.max.request.size' = '2097152'
);

CREATE TABLE too_late (
  `event_id` STRING,
  `event_type` STRING,
  `event_time_ms` BIGINT,
  `user_id` STRING,
  `item_id` STRING,
  `category` STRING,
  `creator_id` STRING,
  `request_id` STRING,
  `position` BIGINT,
  `watch_ms` BIGINT,
  `duration_ms` BIGINT,
  `device` STRING,
  `schema_version` BIGINT,
  `partition` INT,
  `offset` BIGINT,
  `arrival_ms` BIGINT
) WITH (
  'connector' = 'kafka',
  'topic' = 'millrace.too-late.v0',
  'properties.bootstrap.servers' = 'broker:9092',
  'format' = 'json',
  'json.encode.ignore-null-fields' = 'true',
  'sink.delivery-guarantee' = 'at-least-once',
  'properties.linger.ms' = '5',
  'properties.compression.type' = 'lz4',
  'properties.max.request.size' = '2097152'
);

CREATE TABLE interactions (
  `event_id` STRING,
  `event_type` STRING,
  `event_time_ms` BIGINT,
  `user_id` STRING,
  `item_id` STRING,
  `category` STRING,
  `creator_id` STRING,
  `watch_ms` BIGINT,
  `duration_ms` BIGINT
) WITH (
  'connector' = 'kafka',
  'topic' = 'millrace.interactions.v0',
  'properties.bootstrap.servers' = 'broker:9092',
  'key.format' = 'raw',
  'key.fields' = 'user_id',
  'value.format' = 'json',
  'value.fields-include' = 'ALL',
  'value.json.encode.ignore-null-fields' = 'true',
  'sink.delivery-guarantee' = 'at-least-once',
  'properties.linger.ms' = '5',
  'properties.compression.type' = 'lz4',
  'properties.max.request.size' = '2097152'
);

CREATE TABLE tiles_user_category (
  `user_id` STRING,
  `category` STRING,
  `tile_ms` BIGINT,
  `tile_start_ms` BIGINT,
  `n` BIGINT,
  `max_event_time_ms` BIGINT,
  `clicks` BIGINT,
  `completions` BIGINT,
  `distinct_engagements_day_part` BIGINT,
  `distinct_engagements_kind` BIGINT,
  `follows` BIGINT,
  `hides` BIGINT,
  `impressions` BIGINT,
  `last_clicks_ms` BIGINT,
  `last_watches_watch_percent` BIGINT,
  `likes` BIGINT,
  `max_watches_watch_percent` BIGINT,
  `shares` BIGINT,
  `watches` BIGINT,
  `watches_watch_ms` BIGINT,
  PRIMARY KEY (`user_id`, `category`, `tile_ms`, `tile_start_ms`) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'millrace.tiles.user-category.v0',
  'properties.bootstrap.servers' = 'broker:9092',
  'key.format' = 'json',
  'value.format' = 'json',
  'sink.delivery-guarantee' = 'at-least-once',
  'properties.linger.ms' = '5',
  'properties.compression.type' = 'lz4',
  'properties.max.request.size' = '2097152'
);

CREATE TABLE tiles_item (
  `item_id` STRING,
  `category` STRING,
  `creator_id` STRING,
  `tile_ms` BIGINT,
  `tile_start_ms` BIGINT,
  `n` BIGINT,
  `max_event_time_ms` BIGINT,
  `clicks` BIGINT,
  `completions` BIGINT,
  `hides` BIGINT,
  `impressions` BIGINT,
  `likes` BIGINT,
  `shares` BIGINT,
  `watches` BIGINT,
  `watches_watch_ms` BIGINT,
  PRIMARY KEY (`item_id`, `category`, `creator_id`, `tile_ms`, `tile_start_ms`) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'millrace.tiles.item.v0',
  'properties.bootstrap.servers' = 'broker:9092',
  'key.format' = 'json',
  'value.format' = 'json',
  'sink.delivery-guarantee' = 'at-least-once',
  'properties.linger.ms' = '5',
  'properties.compression.type' = 'lz4',
  'properties.max.request.size' = '2097152'
);

CREATE VIEW decoded AS
SELECT `value`, DECODE(`value`, 'UTF-8') AS `text`, `partition`, `offset`, `proctime`,
  CAST(TIMESTAMPDIFF(SECOND, TO_TIMESTAMP_LTZ(0, 3), `arrival`) AS BIGINT) * 1000 + EXTRACT(MILLISECOND FROM `arrival`) AS arrival_ms
FROM events_topic;

CREATE VIEW records AS
SELECT `value`, `text`, `partition`, `offset`, `arrival_ms`, `proctime`, RAND() AS barrier,
  JSON_VALUE(`text`, '$.event_id') AS event_id_text,
  JSON_VALUE(`text`, '$.event_type') AS event_type_text,
  JSON_VALUE(`text`, '$.event_time_ms') AS event_time_ms_text,
  JSON_VALUE(`text`, '$.user_id') AS user_id_text,
  JSON_VALUE(`text`, '$.item_id') AS item_id_text,
  JSON_VALUE(`text`, '$.category') AS category_text,
  JSON_VALUE(`text`, '$.creator_id') AS creator_id_text,
  JSON_VALUE(`text`, '$.request_id') AS request_id_text,
  JSON_VALUE(`text`, '$.position') AS position_text,
  JSON_VALUE(`text`, '$.watch_ms') AS watch_ms_text,
  JSON_VALUE(`text`, '$.duration_ms') AS duration_ms_text,
  JSON_VALUE(`text`, '$.device') AS device_text,
  JSON_VALUE(`text`, '$.schema_version') AS schema_version_text
FROM decoded;

CREATE VIEW judged AS
SELECT `value`, `text`, `partition`, `offset`, `arrival_ms`, `proctime`, event_id_text, event_type_text, event_time_ms_text, user_id_text, item_id_text, category_text, creator_id_text, request_id_text, position_text, watch_ms_text, duration_ms_text, device_text, schema_version_text,
  CASE
    WHEN CHAR_LENGTH(`text`) > 5461 AND CHAR_LENGTH(DECODE(`value`, 'ISO-8859-1')) > 16384 THEN 'oversized'
    WHEN `value` IS NULL OR NOT (POSITION(U&'\FFFD' IN `text`) = 0 OR ENCODE(`text`, 'UTF-8') = `value`) OR NOT (`text` IS JSON OBJECT AND (REGEXP(`text`, '\A[^}\]]*\}[ \t\n\r]*\z') OR (CONCAT('[', `text`, ']') IS JSON ARRAY AND CONCAT('{"":', `text`, '}') IS JSON OBJECT))) THEN 'unparsable'
    WHEN event_type_text IS NULL THEN 'missing:event_type'
    WHEN NOT (event_type_text IN ('click', 'follow', 'hide', 'impression', 'like', 'share', 'unfollow', 'unhide', 'unlike', 'watch')) THEN 'invalid:event_type'
    WHEN event_id_text IS NULL THEN 'missing:event_id'
    WHEN NOT (CHAR_LENGTH(event_id_text) <= 64 AND REGEXP(event_id_text, '\A(?:[A-Za-z0-9._:@/+=~-]+)\z')) THEN 'invalid:event_id'
    WHEN event_time_ms_text IS NULL THEN 'missing:event_time_ms'
    WHEN NOT (REGEXP(event_time_ms_text, '\A(?:(0|-?[1-9][0-9]{0,17}))\z') AND TRY_CAST(event_time_ms_text AS BIGINT) BETWEEN 1 AND 4398046511103) THEN 'invalid:event_time_ms'
    WHEN user_id_text IS NULL THEN 'missing:user_id'
    WHEN NOT (CHAR_LENGTH(user_id_text) <= 128 AND REGEXP(user_id_text, '\A(?:[A-Za-z0-9._:@/+=~-]+)\z')) THEN 'invalid:user_id'
    WHEN item_id_text IS NULL THEN 'missing:item_id'
    WHEN NOT (CHAR_LENGTH(item_id_text) <= 128 AND REGEXP(item_id_text, '\A(?:[A-Za-z0-9._:@/+=~-]+)\z')) THEN 'invalid:item_id'
    WHEN category_text IS NULL THEN 'missing:category'
    WHEN NOT (CHAR_LENGTH(category_text) <= 128 AND REGEXP(category_text, '\A(?:[A-Za-z0-9._:@/+=~-]+)\z')) THEN 'invalid:category'
    WHEN creator_id_text IS NULL THEN 'missing:creator_id'
    WHEN NOT (CHAR_LENGTH(creator_id_text) <= 128 AND REGEXP(creator_id_text, '\A(?:[A-Za-z0-9._:@/+=~-]+)\z')) THEN 'invalid:creator_id'
    WHEN request_id_text IS NULL AND event_type_text IN ('impression') THEN 'missing:request_id'
    WHEN NOT (CHAR_LENGTH(request_id_text) <= 128 AND REGEXP(request_id_text, '\A(?:[A-Za-z0-9._:@/+=~-]+)\z')) THEN 'invalid:request_id'
    WHEN position_text IS NULL AND event_type_text IN ('impression') THEN 'missing:position'
    WHEN NOT (REGEXP(position_text, '\A(?:(0|-?[1-9][0-9]{0,17}))\z') AND TRY_CAST(position_text AS BIGINT) BETWEEN 0 AND 9999) THEN 'invalid:position'
    WHEN watch_ms_text IS NULL AND event_type_text IN ('watch') THEN 'missing:watch_ms'
    WHEN NOT (REGEXP(watch_ms_text, '\A(?:(0|-?[1-9][0-9]{0,17}))\z') AND TRY_CAST(watch_ms_text AS BIGINT) BETWEEN 0 AND 86400000) THEN 'invalid:watch_ms'
    WHEN duration_ms_text IS NULL AND event_type_text IN ('watch') THEN 'missing:duration_ms'
    WHEN NOT (REGEXP(duration_ms_text, '\A(?:(0|-?[1-9][0-9]{0,17}))\z') AND TRY_CAST(duration_ms_text AS BIGINT) BETWEEN 1 AND 86400000) THEN 'invalid:duration_ms'
    WHEN NOT (CHAR_LENGTH(device_text) <= 32 AND REGEXP(device_text, '\A(?:[A-Za-z0-9._:@/+=~-]+)\z')) THEN 'invalid:device'
    WHEN schema_version_text IS NULL THEN 'missing:schema_version'
    WHEN NOT (REGEXP(schema_version_text, '\A(?:(0|-?[1-9][0-9]{0,17}))\z') AND TRY_CAST(schema_version_text AS BIGINT) BETWEEN 1 AND 1) THEN 'invalid:schema_version'
    WHEN CAST(event_time_ms_text AS BIGINT) - arrival_ms > 300000 THEN 'future_event_time'
  END AS reason
FROM records
WHERE barrier + barrier >= 0;

CREATE VIEW valid AS
SELECT `partition`, `offset`, `arrival_ms`, `proctime`,
  event_id_text AS `event_id`,
  event_type_text AS `event_type`,
  CAST(event_time_ms_text AS BIGINT) AS `event_time_ms`,
  user_id_text AS `user_id`,
  item_id_text AS `item_id`,
  category_text AS `category`,
  creator_id_text AS `creator_id`,
  request_id_text AS `request_id`,
  CAST(position_text AS BIGINT) AS `position`,
  CAST(watch_ms_text AS BIGINT) AS `watch_ms`,
  CAST(duration_ms_text AS BIGINT) AS `duration_ms`,
  device_text AS `device`,
  CAST(schema_version_text AS BIGINT) AS `schema_version`
FROM judged
WHERE reason IS NULL;

CREATE VIEW in_time AS
SELECT *
FROM valid
WHERE arrival_ms - event_time_ms <= 172800000;

CREATE VIEW counted AS
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `watch_ms`, `duration_ms`
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY user_id, event_id ORDER BY proctime ASC) AS copy
  FROM in_time
)
WHERE copy = 1;

INSERT INTO dead_letters
SELECT reason, `partition`, `offset`, `arrival_ms`,
  CASE WHEN reason <> 'oversized' AND (POSITION(U&'\FFFD' IN `text`) = 0 OR ENCODE(`text`, 'UTF-8') = `value`) THEN `text` END,
  CASE WHEN NOT (reason <> 'oversized' AND (POSITION(U&'\FFFD' IN `text`) = 0 OR ENCODE(`text`, 'UTF-8') = `value`)) THEN TO_BASE64(`value`) END
FROM judged
WHERE reason IS NOT NULL;

INSERT INTO too_late
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `request_id`, `position`, `watch_ms`, `duration_ms`, `device`, `schema_version`, `partition`, `offset`, `arrival_ms`
FROM valid
WHERE arrival_ms - event_time_ms > 172800000;

INSERT INTO interactions
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `watch_ms`, `duration_ms`
FROM counted;

INSERT INTO tiles_user_category
SELECT `user_id`, `category`, `tile_ms`, `tile_start_ms`,
  COUNT(*) AS n,
  MAX(event_time_ms) AS max_event_time_ms,
  COALESCE(SUM(CASE WHEN event_type IN ('click') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `clicks`,
  COALESCE(SUM(CASE WHEN (event_type IN ('watch') AND watch_ms * 100 >= duration_ms * 90) THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `completions`,
  MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CAST((MOD(event_time_ms, 86400000) - MOD(MOD(event_time_ms, 86400000), 14400000)) / 14400000 AS BIGINT) END = 0 THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CAST((MOD(event_time_ms, 86400000) - MOD(MOD(event_time_ms, 86400000), 14400000)) / 14400000 AS BIGINT) END = 1 THEN CAST(2 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CAST((MOD(event_time_ms, 86400000) - MOD(MOD(event_time_ms, 86400000), 14400000)) / 14400000 AS BIGINT) END = 2 THEN CAST(4 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CAST((MOD(event_time_ms, 86400000) - MOD(MOD(event_time_ms, 86400000), 14400000)) / 14400000 AS BIGINT) END = 3 THEN CAST(8 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CAST((MOD(event_time_ms, 86400000) - MOD(MOD(event_time_ms, 86400000), 14400000)) / 14400000 AS BIGINT) END = 4 THEN CAST(16 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CAST((MOD(event_time_ms, 86400000) - MOD(MOD(event_time_ms, 86400000), 14400000)) / 14400000 AS BIGINT) END = 5 THEN CAST(32 AS BIGINT) ELSE CAST(0 AS BIGINT) END) AS `distinct_engagements_day_part`,
  MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CASE event_type WHEN 'click' THEN 0 WHEN 'watch' THEN 1 WHEN 'like' THEN 2 WHEN 'share' THEN 3 WHEN 'follow' THEN 4 WHEN 'hide' THEN 5 END END = 0 THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CASE event_type WHEN 'click' THEN 0 WHEN 'watch' THEN 1 WHEN 'like' THEN 2 WHEN 'share' THEN 3 WHEN 'follow' THEN 4 WHEN 'hide' THEN 5 END END = 1 THEN CAST(2 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CASE event_type WHEN 'click' THEN 0 WHEN 'watch' THEN 1 WHEN 'like' THEN 2 WHEN 'share' THEN 3 WHEN 'follow' THEN 4 WHEN 'hide' THEN 5 END END = 2 THEN CAST(4 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CASE event_type WHEN 'click' THEN 0 WHEN 'watch' THEN 1 WHEN 'like' THEN 2 WHEN 'share' THEN 3 WHEN 'follow' THEN 4 WHEN 'hide' THEN 5 END END = 3 THEN CAST(8 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CASE event_type WHEN 'click' THEN 0 WHEN 'watch' THEN 1 WHEN 'like' THEN 2 WHEN 'share' THEN 3 WHEN 'follow' THEN 4 WHEN 'hide' THEN 5 END END = 4 THEN CAST(16 AS BIGINT) ELSE CAST(0 AS BIGINT) END) + MAX(CASE WHEN CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CASE event_type WHEN 'click' THEN 0 WHEN 'watch' THEN 1 WHEN 'like' THEN 2 WHEN 'share' THEN 3 WHEN 'follow' THEN 4 WHEN 'hide' THEN 5 END END = 5 THEN CAST(32 AS BIGINT) ELSE CAST(0 AS BIGINT) END) AS `distinct_engagements_kind`,
  COALESCE(SUM(CASE WHEN event_type IN ('follow') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `follows`,
  COALESCE(SUM(CASE WHEN event_type IN ('hide') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `hides`,
  COALESCE(SUM(CASE WHEN event_type IN ('impression') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `impressions`,
  COALESCE(MAX(CASE WHEN event_type IN ('click') THEN event_time_ms END), CAST(0 AS BIGINT)) AS `last_clicks_ms`,
  COALESCE(MAX(CASE WHEN event_type IN ('watch') THEN event_time_ms * 2097152 + CASE WHEN watch_ms >= duration_ms THEN 100 ELSE CAST((watch_ms * 100 - MOD(watch_ms * 100, duration_ms)) / duration_ms AS BIGINT) END END), CAST(0 AS BIGINT)) AS `last_watches_watch_percent`,
  COALESCE(SUM(CASE WHEN event_type IN ('like') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `likes`,
  COALESCE(MAX(CASE WHEN event_type IN ('watch') THEN CASE WHEN watch_ms >= duration_ms THEN 100 ELSE CAST((watch_ms * 100 - MOD(watch_ms * 100, duration_ms)) / duration_ms AS BIGINT) END END), CAST(0 AS BIGINT)) AS `max_watches_watch_percent`,
  COALESCE(SUM(CASE WHEN event_type IN ('share') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `shares`,
  COALESCE(SUM(CASE WHEN event_type IN ('watch') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `watches`,
  COALESCE(SUM(CASE WHEN event_type IN ('watch') THEN watch_ms END), CAST(0 AS BIGINT)) AS `watches_watch_ms`
FROM (SELECT *, event_time_ms * 0 + 60000 AS tile_ms, event_time_ms - MOD(event_time_ms, 60000) AS tile_start_ms FROM counted)
GROUP BY `user_id`, `category`, `tile_ms`, `tile_start_ms`;

INSERT INTO tiles_item
SELECT `item_id`, `category`, `creator_id`, `tile_ms`, `tile_start_ms`,
  COUNT(*) AS n,
  MAX(event_time_ms) AS max_event_time_ms,
  COALESCE(SUM(CASE WHEN event_type IN ('click') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `clicks`,
  COALESCE(SUM(CASE WHEN (event_type IN ('watch') AND watch_ms * 100 >= duration_ms * 90) THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `completions`,
  COALESCE(SUM(CASE WHEN event_type IN ('hide') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `hides`,
  COALESCE(SUM(CASE WHEN event_type IN ('impression') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `impressions`,
  COALESCE(SUM(CASE WHEN event_type IN ('like') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `likes`,
  COALESCE(SUM(CASE WHEN event_type IN ('share') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `shares`,
  COALESCE(SUM(CASE WHEN event_type IN ('watch') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `watches`,
  COALESCE(SUM(CASE WHEN event_type IN ('watch') THEN watch_ms END), CAST(0 AS BIGINT)) AS `watches_watch_ms`
FROM (SELECT *, event_time_ms * 0 + 300000 AS tile_ms, event_time_ms - MOD(event_time_ms, 300000) AS tile_start_ms FROM counted)
GROUP BY `item_id`, `category`, `creator_id`, `tile_ms`, `tile_start_ms`;
