CREATE TEMPORARY SYSTEM FUNCTION read_event AS 'millrace.ReadEvent';

CREATE TEMPORARY SYSTEM FUNCTION bit_or AS 'millrace.BitOr';

CREATE TABLE events_topic (
  `value` BYTES,
  `arrival` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  `partition` INT METADATA VIRTUAL,
  `offset` BIGINT METADATA VIRTUAL
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
  'properties.linger.ms' = '10',
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
  'properties.linger.ms' = '10',
  'properties.compression.type' = 'lz4',
  'properties.max.request.size' = '2097152'
);

CREATE TABLE duplicates (
  `event_id` STRING,
  `user_id` STRING,
  `partition` INT,
  `offset` BIGINT
) WITH (
  'connector' = 'kafka',
  'topic' = 'millrace.duplicates.v0',
  'properties.bootstrap.servers' = 'broker:9092',
  'format' = 'json',
  'json.encode.ignore-null-fields' = 'true',
  'sink.delivery-guarantee' = 'at-least-once',
  'properties.linger.ms' = '10',
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
  `duration_ms` BIGINT,
  `partition` INT,
  `offset` BIGINT
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
  'properties.linger.ms' = '10',
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
  'properties.linger.ms' = '10',
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
  'properties.linger.ms' = '10',
  'properties.compression.type' = 'lz4',
  'properties.max.request.size' = '2097152'
);

CREATE VIEW arrived AS
SELECT `value`, `partition`, `offset`,
  CAST(TIMESTAMPDIFF(SECOND, TO_TIMESTAMP_LTZ(0, 3), `arrival`) AS BIGINT) * 1000 + EXTRACT(MILLISECOND FROM `arrival`) AS arrival_ms
FROM events_topic;

CREATE VIEW read AS
SELECT `value`, `partition`, `offset`, `arrival_ms`,
  read_event('{"max_event_bytes": 16384, "future_skew_ms": 300000, "event_types": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "id_pattern": "[A-Za-z0-9._:@/+=~-]+", "integer_pattern": "(0|-?[1-9][0-9]{0,17})", "fields": [{"name": "event_id", "kind": "id", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 64, "minimum": 0, "maximum": 100000000000000000}, {"name": "event_type", "kind": "event_type", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 128, "minimum": 0, "maximum": 100000000000000000}, {"name": "event_time_ms", "kind": "integer", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 128, "minimum": 1, "maximum": 4398046511103}, {"name": "user_id", "kind": "id", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 128, "minimum": 0, "maximum": 100000000000000000}, {"name": "item_id", "kind": "id", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 128, "minimum": 0, "maximum": 100000000000000000}, {"name": "category", "kind": "id", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 128, "minimum": 0, "maximum": 100000000000000000}, {"name": "creator_id", "kind": "id", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 128, "minimum": 0, "maximum": 100000000000000000}, {"name": "request_id", "kind": "id", "required_for": ["impression"], "max_bytes": 128, "minimum": 0, "maximum": 100000000000000000}, {"name": "position", "kind": "integer", "required_for": ["impression"], "max_bytes": 128, "minimum": 0, "maximum": 9999}, {"name": "watch_ms", "kind": "integer", "required_for": ["watch"], "max_bytes": 128, "minimum": 0, "maximum": 86400000}, {"name": "duration_ms", "kind": "integer", "required_for": ["watch"], "max_bytes": 128, "minimum": 1, "maximum": 86400000}, {"name": "device", "kind": "id", "required_for": [], "max_bytes": 32, "minimum": 0, "maximum": 100000000000000000}, {"name": "schema_version", "kind": "integer", "required_for": ["click", "follow", "hide", "impression", "like", "share", "unfollow", "unhide", "unlike", "watch"], "max_bytes": 128, "minimum": 1, "maximum": 99}]}', `value`, arrival_ms) AS event
FROM arrived;

CREATE VIEW judged AS
SELECT `value`, `partition`, `offset`, `arrival_ms`,
  read.event.`reason` AS `reason`, read.event.`event_id` AS `event_id`, read.event.`event_type` AS `event_type`, read.event.`event_time_ms` AS `event_time_ms`, read.event.`user_id` AS `user_id`, read.event.`item_id` AS `item_id`, read.event.`category` AS `category`, read.event.`creator_id` AS `creator_id`, read.event.`request_id` AS `request_id`, read.event.`position` AS `position`, read.event.`watch_ms` AS `watch_ms`, read.event.`duration_ms` AS `duration_ms`, read.event.`device` AS `device`, read.event.`schema_version` AS `schema_version`
FROM read;

CREATE VIEW in_time AS
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `watch_ms`, `duration_ms`, `partition`, `offset`
FROM judged
WHERE reason IS NULL AND arrival_ms - event_time_ms <= 172800000;

CREATE VIEW marked AS
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `watch_ms`, `duration_ms`, `partition`, `offset`, COUNT(*) OVER (PARTITION BY `event_id`, `user_id` ORDER BY PROCTIME()) > 1 AS is_copy
FROM in_time;

CREATE VIEW counted AS
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `watch_ms`, `duration_ms`, `partition`, `offset`
FROM marked
WHERE NOT is_copy;

INSERT INTO dead_letters
SELECT reason, `partition`, `offset`, `arrival_ms`,
  CASE WHEN reason <> 'oversized' AND ENCODE(DECODE(`value`, 'UTF-8'), 'UTF-8') = `value` THEN DECODE(`value`, 'UTF-8') END,
  CASE WHEN NOT (reason <> 'oversized' AND ENCODE(DECODE(`value`, 'UTF-8'), 'UTF-8') = `value`) THEN TO_BASE64(`value`) END
FROM judged
WHERE reason IS NOT NULL;

INSERT INTO too_late
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `request_id`, `position`, `watch_ms`, `duration_ms`, `device`, `schema_version`, `partition`, `offset`, `arrival_ms`
FROM judged
WHERE reason IS NULL AND arrival_ms - event_time_ms > 172800000;

INSERT INTO duplicates
SELECT `event_id`, `user_id`, `partition`, `offset`
FROM marked
WHERE is_copy;

INSERT INTO interactions
SELECT `event_id`, `event_type`, `event_time_ms`, `user_id`, `item_id`, `category`, `creator_id`, `watch_ms`, `duration_ms`, `partition`, `offset`
FROM counted;

INSERT INTO tiles_user_category
SELECT `user_id`, `category`, `tile_ms`, `tile_start_ms`,
  COUNT(*) AS n,
  MAX(event_time_ms) AS max_event_time_ms,
  COALESCE(SUM(CASE WHEN event_type IN ('click') THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `clicks`,
  COALESCE(SUM(CASE WHEN (event_type IN ('watch') AND watch_ms * 100 >= duration_ms * 90) THEN CAST(1 AS BIGINT) END), CAST(0 AS BIGINT)) AS `completions`,
  COALESCE(BIT_OR(CAST(POWER(2, CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CAST((MOD(event_time_ms, 86400000) - MOD(MOD(event_time_ms, 86400000), 14400000)) / 14400000 AS BIGINT) END) AS BIGINT)), CAST(0 AS BIGINT)) AS `distinct_engagements_day_part`,
  COALESCE(BIT_OR(CAST(POWER(2, CASE WHEN event_type IN ('click', 'follow', 'hide', 'like', 'share', 'watch') THEN CASE event_type WHEN 'click' THEN 0 WHEN 'watch' THEN 1 WHEN 'like' THEN 2 WHEN 'share' THEN 3 WHEN 'follow' THEN 4 WHEN 'hide' THEN 5 END END) AS BIGINT)), CAST(0 AS BIGINT)) AS `distinct_engagements_kind`,
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
