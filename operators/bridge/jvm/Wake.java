/**
 * Looks after delivery's lanes: each second, and at the end of the input, every lane gets an empty row.
 *
 * Delivery goes by its timers. But a timer that Python has registered in the last bundle before a
 * checkpoint may not be in the checkpoint (seen with Flink 2.3: five lanes of sixteen had none after a
 * savepoint; compare FLINK-37084), and a lane without a timer would wait for its next event, which may
 * never come. An empty row makes it look after itself, and register its timers again.
 *
 * Input and output: Row(lane, Row(progress, ...)) (lanes.LANED). Keeps no state.
 */
public class Wake extends AbstractStreamOperator
        implements OneInputStreamOperator, ProcessingTimeService.ProcessingTimeCallback {
  private static final long EVERY_MS = 1000;
  private static final byte[] NO_PROGRESS = new byte[12];
  private static final byte[] NOTHING = new byte[0];
  private final java.util.List lanes;

  public Wake(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.lanes = (java.util.List) refs[0];
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void open() throws Exception {
    super.open();
    // One of the subtasks reaches all lanes.
    if (getRuntimeContext().getTaskInfo().getIndexOfThisSubtask() == 0) {
      arm();
    }
  }

  private void arm() {
    processingTimeService.registerTimer(
        processingTimeService.getCurrentProcessingTime() + EVERY_MS, this);
  }

  public void onProcessingTime(long now) throws Exception {
    wake();
    arm();
  }

  public void processElement(StreamRecord record) throws Exception {
    output.collect(record);
  }

  public void processWatermark(Watermark mark) throws Exception {
    if (mark.getTimestamp() == Long.MAX_VALUE) {
      wake(); // in front of it, so that each lane waits for it
    }
    super.processWatermark(mark);
  }

  private void wake() {
    for (int i = 0; i < lanes.size(); i++) {
      Row value = Row.of(new Object[] {NO_PROGRESS, NOTHING, NOTHING});
      output.collect(new StreamRecord(Row.of(new Object[] {lanes.get(i), value})));
    }
  }
}
