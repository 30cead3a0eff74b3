/**
 * The counts of batches to the rows of the ledger.
 *
 * Input: byte[], JSON lines of what was counted of one source partition in one minute of processing
 * (minute_ms): numbers; numbers by name (dead_lettered, quarantined); the offsets, as first_offset and
 * last_offset, and as spans [first, last, count] where there are gaps between them; or, of a planned
 * partition, the pieces of it that have been read to their end (splits).
 * Output: RowData whose one field is a line: for each partition and minute the sums of all lines since
 * the checkpoint before. A minute in which n checkpoints were taken has n rows of a partition, or one
 * more: who reads adds them up.
 *
 * Keeps nothing across a checkpoint: rows leave before the barrier, and only then. So what is counted
 * before a checkpoint is committed with it, wholly and once; and as there is one subtask of this step,
 * and of the sink behind it, the rows of a checkpoint appear together: whenever somebody looks, they
 * balance.
 */
public class Books extends AbstractStreamOperator implements OneInputStreamOperator {
  private final int maxSpans;
  private transient org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper json;
  private transient Map entries;

  /** What has been counted of one partition in one minute. */
  static class Entry {
    long minuteMs;
    String topic;
    long partition;
    boolean planned;
    final Map numbers = new LinkedHashMap();
    final Map named = new LinkedHashMap();
    final java.util.List splits = new java.util.ArrayList();
    java.util.List spans = new java.util.ArrayList();
    long first = Long.MAX_VALUE;
    long last = Long.MIN_VALUE;
  }

  public Books(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.maxSpans = ((Number) refs[0]).intValue();
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    json = new org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper();
    entries = new LinkedHashMap();
  }

  public void processElement(StreamRecord record) throws Exception {
    byte[] lines = (byte[]) record.getValue();
    int begin = 0;
    for (int end = 0; end < lines.length; end++) {
      if (lines[end] == '\n') {
        add((Map) json.readValue(lines, begin, end - begin, Map.class));
        begin = end + 1;
      }
    }
  }

  private void add(Map line) {
    Entry entry = entryOf(line);
    Iterator fields = line.entrySet().iterator();
    while (fields.hasNext()) {
      Map.Entry field = (Map.Entry) fields.next();
      String name = (String) field.getKey();
      Object value = field.getValue();
      if (name.equals("minute_ms") || name.startsWith("source_") || name.equals("spans")) {
        continue;
      }
      if (name.equals("first_offset")) {
        entry.first = Math.min(entry.first, ((Number) value).longValue());
      } else if (name.equals("last_offset")) {
        entry.last = Math.max(entry.last, ((Number) value).longValue());
      } else if (name.equals("splits")) {
        entry.planned = true;
        entry.splits.addAll((java.util.List) value);
      } else if (value instanceof Map) {
        sumAll(entry.named, name, (Map) value);
      } else {
        sum(entry.numbers, name, ((Number) value).longValue());
      }
    }
    addSpans(entry, line);
  }

  private Entry entryOf(Map line) {
    Object key = java.util.Arrays.asList(new Object[] {
        line.get("source_topic"), line.get("source_partition"), line.get("minute_ms")});
    Entry entry = (Entry) entries.get(key);
    if (entry == null) {
      entry = new Entry();
      entry.topic = (String) line.get("source_topic");
      entry.partition = ((Number) line.get("source_partition")).longValue();
      entry.minuteMs = ((Number) line.get("minute_ms")).longValue();
      entries.put(key, entry);
    }
    return entry;
  }

  private static void sum(Map sums, Object name, long more) {
    Long before = (Long) sums.get(name);
    sums.put(name, Long.valueOf(more + (before == null ? 0L : before.longValue())));
  }

  private static void sumAll(Map named, String name, Map more) {
    Map sums = (Map) named.get(name);
    if (sums == null) {
      sums = new LinkedHashMap();
      named.put(name, sums);
    }
    Iterator counts = more.entrySet().iterator();
    while (counts.hasNext()) {
      Map.Entry count = (Map.Entry) counts.next();
      sum(sums, count.getKey(), ((Number) count.getValue()).longValue());
    }
  }

  private void addSpans(Entry entry, Map line) {
    if (line.containsKey("spans")) {
      Iterator spans = ((java.util.List) line.get("spans")).iterator();
      while (spans.hasNext()) {
        java.util.List span = (java.util.List) spans.next();
        addSpan(entry, at(span, 0), at(span, 1), at(span, 2));
      }
    } else if (line.containsKey("first_offset") && !line.containsKey("splits")) {
      addSpan(entry, ((Number) line.get("first_offset")).longValue(),
          ((Number) line.get("last_offset")).longValue(), ((Number) line.get("received")).longValue());
    }
  }

  private static long at(java.util.List span, int i) {
    return ((Number) span.get(i)).longValue();
  }

  /* A partition is read in order, so a span can go on only where the one before it ends. */
  private void addSpan(Entry entry, long first, long last, long count) {
    if (!entry.spans.isEmpty()) {
      long[] before = (long[]) entry.spans.get(entry.spans.size() - 1);
      if (first == before[1] + 1 && isUnbroken(before) && last - first + 1 == count) {
        before[1] = last;
        before[2] += count;
        return;
      }
    }
    entry.spans.add(new long[] {first, last, count});
    if (entry.spans.size() > maxSpans) {
      halve(entry);
    }
  }

  private static boolean isUnbroken(long[] span) {
    return span[1] - span[0] + 1 == span[2];
  }

  /* Neighbours share a span, which then tells how many offsets are missing in it, not which. */
  private static void halve(Entry entry) {
    java.util.List fewer = new java.util.ArrayList();
    for (int i = 0; i < entry.spans.size(); i += 2) {
      long[] span = (long[]) entry.spans.get(i);
      if (i + 1 < entry.spans.size()) {
        long[] next = (long[]) entry.spans.get(i + 1);
        span = new long[] {Math.min(span[0], next[0]), Math.max(span[1], next[1]), span[2] + next[2]};
      }
      fewer.add(span);
    }
    entry.spans = fewer;
  }

  public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
    emit();
    super.prepareSnapshotPreBarrier(checkpointId);
  }

  public void finish() throws Exception {
    emit();
    super.finish();
  }

  private void emit() throws Exception {
    Iterator each = entries.values().iterator();
    while (each.hasNext()) {
      byte[] row = json.writeValueAsBytes(rowOf((Entry) each.next()));
      byte[] line = java.util.Arrays.copyOf(row, row.length + 1);
      line[row.length] = '\n';
      output.collect(new StreamRecord(GenericRowData.of(new Object[] {line})));
    }
    entries.clear();
  }

  private static Map rowOf(Entry entry) {
    Map row = new LinkedHashMap();
    // As every time of the output: ISO-8601, UTC, with milliseconds.
    row.put("minute",
        java.time.Instant.ofEpochMilli(entry.minuteMs).toString().replace("Z", ".000Z"));
    row.put("source_topic", entry.topic);
    row.put("source_partition", Long.valueOf(entry.partition));
    String[] names = {"received", "processed", "duplicate", "pending", "fallback", "windowed", "late"};
    for (int i = 0; i < names.length; i++) {
      Object sum = entry.numbers.get(names[i]);
      row.put(names[i], sum == null ? Long.valueOf(0L) : sum);
    }
    String[] groups = {"dead_lettered", "quarantined"};
    for (int i = 0; i < groups.length; i++) {
      Object sums = entry.named.get(groups[i]);
      row.put(groups[i], sums == null ? java.util.Collections.EMPTY_MAP : sums);
    }
    if (entry.first <= entry.last) {
      row.put("first_offset", Long.valueOf(entry.first));
      row.put("last_offset", Long.valueOf(entry.last));
    }
    if (entry.planned) {
      row.put("splits", entry.splits);
    } else if (entry.spans.size() > 1) {
      row.put("spans", entry.spans);
    }
    return row;
  }
}
