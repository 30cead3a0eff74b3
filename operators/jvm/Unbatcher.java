/**
 * Arrow batches to rows. Input: byte[], an Arrow IPC stream of one batch. Output: one RowData a row.
 *
 * With an event-time field it is also the gate before the windows: a row whose tumbling window has
 * closed by the watermark goes to the late output instead, so that nothing reaches the windows that
 * they would drop without a word (the same comparison as Flink's TimeWindowUtil.isWindowFired). It
 * then counts what it lets through and what is late: one line a batch to the counts output.
 *
 * Keeps no state: the watermark comes again after a restart (Marks), before any row does.
 */
public class Unbatcher extends AbstractStreamOperator implements OneInputStreamOperator {
  private final RowType type;
  private final int timeField;
  private final long windowMs;
  private final OutputTag late;
  private final OutputTag counts;
  private transient long watermark;

  public Unbatcher(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.type = (RowType) refs[0];
    this.timeField = ((Number) refs[1]).intValue();
    this.windowMs = ((Number) refs[2]).longValue();
    this.late = (OutputTag) refs[3];
    this.counts = (OutputTag) refs[4];
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
    ArrowSerializer arrow = new ArrowSerializer(type, type);
    arrow.open(new java.io.ByteArrayInputStream((byte[]) record.getValue()),
        new java.io.ByteArrayOutputStream(0));
    int rows = arrow.load();
    if (timeField < 0) {
      for (int i = 0; i < rows; i++) {
        output.collect(new StreamRecord(arrow.read(i)));
      }
    } else {
      gate(arrow, rows);
    }
    arrow.close();
  }

  private void gate(ArrowSerializer arrow, int rows) throws Exception {
    int windowed = 0;
    for (int i = 0; i < rows; i++) {
      RowData row = arrow.read(i);
      long time = row.getTimestamp(timeField, 3).getMillisecond();
      long lastOfWindow = time - Math.floorMod(time, windowMs) + windowMs - 1;
      if (lastOfWindow > watermark) {
        output.collect(new StreamRecord(row, time));
        windowed++;
      } else {
        output.collect(late, new StreamRecord(row, time));
      }
    }
    if (rows > 0) {
      String line = "{\"stage\":\"windows\",\"processed\":" + rows + ",\"windowed\":" + windowed
          + ",\"late\":" + (rows - windowed) + "}\n";
      GenericRowData count = GenericRowData.of(new Object[] {line.getBytes("UTF-8")});
      output.collect(counts, new StreamRecord(count));
    }
  }
}
