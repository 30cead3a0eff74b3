/**
 * The gate before the windows. Input: Row(lines, progress, times, partials) of one batch of accepted
 * events (bridge.ACCEPTED). The partials are the events added up by key and window; the lines, and
 * their times (big-endian longs, ms), are unpacked and looked at only where a window has closed.
 *
 * Output: RowData, the partials of open windows. What belongs to a window that the watermark has
 * closed goes to the late output, line by line, so that nothing reaches the windows that they would
 * drop without a word (the same comparison as Flink's TimeWindowUtil.isWindowFired). To the counts
 * output go JSON lines for Books.java, one a source partition of the batch: what was processed, let
 * through, and late. Processed events are counted by their times, late ones by line, those let through by
 * what the windows get. The windows' partials are of all partitions together: each partition is said to
 * have let through what is not late of it, and the first one has the difference to what the windows got,
 * so that the books show it, if ever there is one.
 *
 * State: "ahead", partials that are far ahead of the watermark (Ahead), an entry a window, and one that
 * names the job's windows and sums, also when nothing is held. The watermark comes again after a restart
 * (Marks, Lanes), before any batch does.
 */
public class Gate extends AbstractStreamOperator implements OneInputStreamOperator {
  private static final int TIME = 1;
  private static final int COUNT = 3;
  private final RowType type;
  private final long windowMs;
  private final OutputTag late;
  private final OutputTag counts;
  private final long slackMs;
  private final long aheadBytes;
  private transient long watermark;
  private transient Ahead ahead;
  private transient ListState state;

  public Gate(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.type = (RowType) refs[0];
    this.windowMs = ((Number) refs[1]).longValue();
    this.late = (OutputTag) refs[2];
    this.counts = (OutputTag) refs[3];
    this.slackMs = ((Number) refs[4]).longValue();
    this.aheadBytes = ((Number) refs[5]).longValue();
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void initializeState(StateInitializationContext context) throws Exception {
    super.initializeState(context);
    watermark = Long.MIN_VALUE;
    ahead = new Ahead(type, windowMs, slackMs, aheadBytes);
    state = context.getOperatorStateStore().getListState(
        new ListStateDescriptor("ahead", PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO));
    Iterator saved = ((Iterable) state.get()).iterator();
    while (saved.hasNext()) {
      ahead.restore((byte[]) saved.next());
    }
    state.clear();
  }

  public void snapshotState(StateSnapshotContext context) throws Exception {
    super.snapshotState(context);
    state.update(ahead.entries());
  }

  public void processWatermark(Watermark mark) throws Exception {
    watermark = mark.getTimestamp();
    ahead.release(watermark, output);
    super.processWatermark(mark);
  }

  public void processElement(StreamRecord record) throws Exception {
    Row row = (Row) record.getValue();
    java.nio.ByteBuffer times = java.nio.ByteBuffer.wrap((byte[]) row.getField(2));
    int processed = times.remaining() / 8;
    if (processed == 0) {
      return;
    }
    Sources sources = new Sources((byte[]) row.getField(1), processed);
    long windowed = letThrough((byte[]) row.getField(3));
    if (windowed != processed) {
      turnAway(Packed.unpack((byte[]) row.getField(0)), times, sources);
    }
    output.collect(counts, new StreamRecord(sources.lines(windowed).getBytes("UTF-8")));
  }

  /** The source partitions of a batch, as batches.pack_progress has them, and what is counted of each. */
  static class Sources {
    private final String[] names;
    private final boolean[] planned;
    private final long[] processed;
    private final long[] late;
    private final long atMs;
    private final boolean several;
    private final int begin;
    private final java.nio.ByteBuffer numbers;

    Sources(byte[] packed, int events) throws Exception {
      java.io.ByteArrayInputStream bytes = new java.io.ByteArrayInputStream(packed);
      java.io.DataInputStream in = new java.io.DataInputStream(bytes);
      int n = in.readInt();
      names = new String[n];
      planned = new boolean[n];
      processed = new long[n];
      late = new long[n];
      for (int i = 0; i < n; i++) {
        names[i] = in.readUTF();
        planned[i] = in.readLong() >= 0;
        in.skipBytes(13);
      }
      atMs = in.readLong();
      // Where all events are of one partition nothing follows.
      several = bytes.available() > 0;
      begin = packed.length - bytes.available();
      numbers = java.nio.ByteBuffer.wrap(packed);
      if (several) {
        for (int i = 0; i < events; i++) {
          processed[entryOf(i)]++;
        }
      } else {
        processed[0] = events;
      }
    }

    private int entryOf(int event) {
      return several ? numbers.getInt(begin + 4 * event) : 0;
    }

    void late(int event) {
      late[entryOf(event)]++;
    }

    String lines(long windowed) {
      long off = windowed;
      for (int i = 0; i < names.length; i++) {
        off -= processed[i] - late[i];
      }
      StringBuilder lines = new StringBuilder();
      for (int i = 0; i < names.length; i++) {
        if (processed[i] > 0 || off != 0) {
          int slash = names[i].lastIndexOf('/');
          lines.append("{\"minute_ms\":").append(atMs - Math.floorMod(atMs, 60000L))
              .append(",\"source_topic\":\"")
              .append(org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.io.JsonStringEncoder
                  .getInstance().quoteAsString(planned[i] ? names[i] : names[i].substring(0, slash)))
              .append("\",\"source_partition\":")
              .append(planned[i] ? "0" : names[i].substring(slash + 1))
              .append(",\"processed\":").append(processed[i])
              .append(",\"windowed\":").append(processed[i] - late[i] + off)
              .append(",\"late\":").append(late[i]).append("}\n");
          off = 0;
        }
      }
      return lines.toString();
    }
  }

  private long letThrough(byte[] partials) throws Exception {
    ArrowSerializer arrow = new ArrowSerializer(type, type);
    arrow.open(new java.io.ByteArrayInputStream(partials), new java.io.ByteArrayOutputStream(0));
    int rows = arrow.load();
    long windowed = 0;
    for (int i = 0; i < rows; i++) {
      RowData partial = arrow.read(i);
      long start = startOf(partial.getTimestamp(TIME, 3).getMillisecond());
      if (isOpen(start)) {
        windowed += partial.getLong(COUNT);
        if (!ahead.hold(partial, start, watermark)) {
          output.collect(new StreamRecord(partial));
        }
      }
    }
    arrow.close();
    return windowed;
  }

  private void turnAway(byte[] lines, java.nio.ByteBuffer times, Sources sources) {
    int begin = 0;
    for (int event = 0; times.hasRemaining(); event++) {
      int end = begin;
      while (end < lines.length && lines[end] != '\n') {
        end++;
      }
      if (!isOpen(startOf(times.getLong()))) {
        byte[] line = java.util.Arrays.copyOfRange(lines, begin, end + 1);
        line[end - begin] = '\n';
        output.collect(late, new StreamRecord(row(line)));
        sources.late(event);
      }
      begin = end + 1;
    }
  }

  private long startOf(long time) {
    return time - Math.floorMod(time, windowMs);
  }

  private boolean isOpen(long start) {
    return start + windowMs - 1 > watermark;
  }

  private static GenericRowData row(byte[] line) {
    return GenericRowData.of(new Object[] {line});
  }

  /**
   * Partials of windows far ahead of the watermark, held back as bytes until it comes near.
   *
   * In a backlog a partition that is ahead of the slowest one opens windows that nothing closes for long.
   * In the windows' state each key of each is an entry and a timer, which every checkpoint goes through one
   * by one; here a checkpoint copies bytes. Nothing is held in ordinary operation, where events are within
   * slackMs of the watermark. Beyond maxBytes the windows get what comes at once: they add it up, so that
   * their state does not grow with the number of batches.
   */
  static class Ahead {
    private final TreeMap windows = new TreeMap();
    private final RowDataSerializer rows;
    private final String kind;
    private final long slackMs;
    private final long maxBytes;
    private long bytes;

    Ahead(RowType type, long windowMs, long slackMs, long maxBytes) {
      this.rows = new RowDataSerializer(type);
      this.kind = "version 1, windows of " + windowMs + " ms, " + type.asSerializableString();
      this.slackMs = slackMs;
      this.maxBytes = maxBytes;
    }

    /** Holds the partial of a window back; false if it is to go on at once. */
    boolean hold(RowData partial, long start, long watermark) throws Exception {
      if (bytes >= maxBytes || isNear(start, watermark)) {
        return false;
      }
      DataOutputSerializer held = (DataOutputSerializer) windows.get(Long.valueOf(start));
      if (held == null) {
        held = new DataOutputSerializer(256);
        held.writeUTF(kind);
        held.writeLong(start);
        windows.put(Long.valueOf(start), held);
        bytes += held.length();
      }
      int before = held.length();
      rows.serialize(partial, held);
      bytes += held.length() - before;
      return true;
    }

    /** Hands on what is held of windows that the watermark has come near to. Called before it goes on. */
    void release(long watermark, Output output) throws Exception {
      while (!windows.isEmpty() && isNear(((Long) windows.firstKey()).longValue(), watermark)) {
        DataOutputSerializer held = (DataOutputSerializer) windows.pollFirstEntry().getValue();
        bytes -= held.length();
        DataInputDeserializer in = new DataInputDeserializer(held.getSharedBuffer(), 0, held.length());
        in.readUTF();
        in.readLong();
        while (in.available() > 0) {
          output.collect(new StreamRecord(rows.deserialize(in)));
        }
      }
    }

    /* The first one has no window: the windows' own state would take other sizes without a word. */
    java.util.List entries() throws Exception {
      java.util.List entries = new java.util.ArrayList();
      DataOutputSerializer header = new DataOutputSerializer(128);
      header.writeUTF(kind);
      entries.add(header.getCopyOfBuffer());
      Iterator all = windows.values().iterator();
      while (all.hasNext()) {
        entries.add(((DataOutputSerializer) all.next()).getCopyOfBuffer());
      }
      return entries;
    }

    /* Another subtask may have had a part of the same window. */
    void restore(byte[] entry) throws Exception {
      DataInputDeserializer in = new DataInputDeserializer(entry);
      String before = in.readUTF();
      if (!before.equals(kind)) {
        throw new IllegalStateException("Gate: the state holds sums of another kind (" + before + ") than this"
            + " job's (" + kind + "): start as a new job, or with windows.size_ms and the type of the"
            + " contract's value as they were");
      }
      if (in.available() == 0) {
        return;
      }
      Long start = Long.valueOf(in.readLong());
      DataOutputSerializer held = (DataOutputSerializer) windows.get(start);
      if (held == null) {
        held = new DataOutputSerializer(entry.length);
        held.write(entry);
        windows.put(start, held);
        bytes += entry.length;
      } else {
        held.write(entry, entry.length - in.available(), in.available());
        bytes += in.available();
      }
    }

    /* Without an overflow at either end: before the first watermark there is none near, after the last all. */
    private boolean isNear(long start, long watermark) {
      return start - slackMs <= watermark;
    }
  }
}
