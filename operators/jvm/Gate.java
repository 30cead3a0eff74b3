/**
 * The gate before the windows. Input: Row(progress, lines, times, partials) of one batch of accepted
 * events (bridge.ACCEPTED). The partials are the events added up by key and window; the lines, and
 * their times (big-endian longs, ms), are unpacked and looked at only where a window has closed.
 *
 * Output: RowData, the partials of open windows. What belongs to a window that the watermark has
 * closed goes to the late output, line by line, so that nothing reaches the windows that they would
 * drop without a word (the same comparison as Flink's TimeWindowUtil.isWindowFired). To the counts
 * output goes one line a batch: what was processed, let through, and late.
 *
 * Keeps no state: the watermark comes again after a restart (Marks), before any batch does.
 */
public class Gate extends AbstractStreamOperator implements OneInputStreamOperator {
  private static final int TIME = 1;
  private static final int COUNT = 3;
  private final RowType type;
  private final long windowMs;
  private final OutputTag late;
  private final OutputTag counts;
  private transient long watermark;

  public Gate(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.type = (RowType) refs[0];
    this.windowMs = ((Number) refs[1]).longValue();
    this.late = (OutputTag) refs[2];
    this.counts = (OutputTag) refs[3];
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    watermark = Long.MIN_VALUE;
  }

  public void processWatermark(Watermark mark) throws Exception {
    watermark = mark.getTimestamp();
    super.processWatermark(mark);
  }

  public void processElement(StreamRecord record) throws Exception {
    Row row = (Row) record.getValue();
    java.nio.ByteBuffer times = java.nio.ByteBuffer.wrap((byte[]) row.getField(2));
    int processed = times.remaining() / 8;
    if (processed == 0) {
      return;
    }
    long windowed = letThrough((byte[]) row.getField(3));
    int lateOnes = windowed == processed ? 0 : turnAway(Packed.unpack((byte[]) row.getField(1)), times);
    String line = "{\"stage\":\"windows\",\"processed\":" + processed + ",\"windowed\":" + windowed
        + ",\"late\":" + lateOnes + "}\n";
    output.collect(counts, new StreamRecord(row(line.getBytes("UTF-8"))));
  }

  private long letThrough(byte[] partials) throws Exception {
    ArrowSerializer arrow = new ArrowSerializer(type, type);
    arrow.open(new java.io.ByteArrayInputStream(partials), new java.io.ByteArrayOutputStream(0));
    int rows = arrow.load();
    long windowed = 0;
    for (int i = 0; i < rows; i++) {
      RowData partial = arrow.read(i);
      if (isOpen(partial.getTimestamp(TIME, 3).getMillisecond())) {
        windowed += partial.getLong(COUNT);
        output.collect(new StreamRecord(partial));
      }
    }
    arrow.close();
    return windowed;
  }

  private int turnAway(byte[] lines, java.nio.ByteBuffer times) {
    int found = 0;
    int begin = 0;
    while (times.hasRemaining()) {
      int end = begin;
      while (lines[end] != '\n') {
        end++;
      }
      if (!isOpen(times.getLong())) {
        byte[] line = java.util.Arrays.copyOfRange(lines, begin, end + 1);
        output.collect(late, new StreamRecord(row(line)));
        found++;
      }
      begin = end + 1;
    }
    return found;
  }

  private boolean isOpen(long time) {
    return time - Math.floorMod(time, windowMs) + windowMs - 1 > watermark;
  }

  private static GenericRowData row(byte[] line) {
    return GenericRowData.of(new Object[] {line});
  }
}
