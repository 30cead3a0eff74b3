/**
 * The watermark: the least of what the source partitions have reached, less the delay.
 *
 * Input: Row whose second field is the progress of the batch's partitions, packed big-endian:
 * int count, then for each: UTF name, long split (-1: none, the partition is read in order), byte last
 * (of the split), int records, long newest (event time, ms; Long.MIN_VALUE: none accepted); what
 * follows is for Gate.java.
 * Output: the same Row, then a watermark when it has advanced.
 *
 * A planned partition (a file) holds the watermark back from the start, at its first event's time if
 * that is known, until all its splits have been read; splits may arrive in any order, only the
 * unbroken run from the first counts. A topic's partition has no end. Planned with OPEN splits it holds
 * the watermark back from the start, until its first record: else the fastest partition of a backlog
 * would make the others late. Planned as EMPTY, or not planned, it counts from its first record.
 *
 * A topic's partition is left aside when it is idle: silent for idleMs while others go on. Time in which
 * no record comes at all (a broker that is away, a restart) counts for half of that at most, once a
 * silence: else whichever partition comes back first would make the others late.
 *
 * Guarantee: marks are operator state, so after a restart the watermark goes on from where the
 * checkpoint had it, and is sent before any batch: what was late stays late, and what was not is not.
 */
public class Marks extends AbstractStreamOperator
        implements OneInputStreamOperator, ProcessingTimeService.ProcessingTimeCallback {
  private static final int VERSION = 1;
  private static final long OPEN = -1;
  private static final long EMPTY = -2;
  private final long delayMs;
  private final long idleMs;
  private final java.util.List plan;
  private final Map partitions = new HashMap();
  private transient ListState state;
  private long sent = Long.MIN_VALUE;
  private transient boolean resend;
  private transient boolean topics;
  /* Time that counts for idleness, up to the last record. */
  private transient long active;
  private transient long lastArrival;

  /** How far one partition has been read. */
  static class Mark {
    long splits;
    long next;
    long newest;
    Map ahead = new HashMap();
    /* When its last record came, in active time. */
    transient long seen;

    boolean finished() {
      return splits >= 0 && next >= splits;
    }
  }

  public Marks(Object[] refs, StreamTask task, StreamConfig config, Output output,
      ProcessingTimeService times) {
    this.plan = (java.util.List) refs[0];
    this.delayMs = ((Number) refs[1]).longValue();
    this.idleMs = ((Number) refs[2]).longValue();
    this.processingTimeService = times;
    setup(task, config, output);
  }

  public void initializeState(StateInitializationContext context) throws Exception {
    super.initializeState(context);
    for (int i = 0; i < plan.size(); i++) {
      Object[] entry = (Object[]) plan.get(i);
      Mark mark = mark((String) entry[0]);
      long splits = ((Number) entry[1]).longValue();
      mark.splits = Math.max(splits, OPEN);
      mark.newest = ((Number) entry[2]).longValue();
      mark.seen = splits == EMPTY ? -idleMs : 0;
      topics = topics || splits < 0;
    }
    topics = topics || plan.isEmpty();
    state = context.getOperatorStateStore().getListState(
        new ListStateDescriptor("marks", PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO));
    Iterator saved = ((Iterable) state.get()).iterator();
    while (saved.hasNext()) {
      read((byte[]) saved.next());
    }
    resend = sent > Long.MIN_VALUE;
  }

  public void open() throws Exception {
    super.open();
    if (idleMs > 0 && topics) {
      processingTimeService.registerTimer(
          processingTimeService.getCurrentProcessingTime() + idleMs / 2, this);
    }
  }

  public void snapshotState(StateSnapshotContext context) throws Exception {
    super.snapshotState(context);
    state.update(java.util.Collections.singletonList(write()));
  }

  public void processElement(StreamRecord record) throws Exception {
    if (resend) {
      resend = false;
      output.emitWatermark(new Watermark(sent));
    }
    Row row = (Row) record.getValue();
    output.collect(record);
    active = activeTime();
    lastArrival = processingTimeService.getCurrentProcessingTime();
    java.io.DataInputStream in = new java.io.DataInputStream(
        new java.io.ByteArrayInputStream(progressOf(row)));
    for (int n = in.readInt(); n > 0; n--) {
      advance(mark(in.readUTF()), in.readLong(), in.readByte() != 0, in.readInt(), in.readLong());
    }
    advanceWatermark();
  }

  /* Of accepted events (lines, progress, ...), and of those on their way to delivery (lane, (progress, ...)). */
  private static byte[] progressOf(Row row) {
    Object second = row.getField(1);
    return (byte[]) (second instanceof Row ? ((Row) second).getField(0) : second);
  }

  private Mark mark(String name) {
    Mark mark = (Mark) partitions.get(name);
    if (mark == null) {
      mark = new Mark();
      mark.splits = OPEN;
      mark.newest = Long.MIN_VALUE;
      partitions.put(name, mark);
    }
    return mark;
  }

  private void advance(Mark mark, long split, boolean last, int records, long newest) {
    getRuntimeContext().getLongCounter("received").add((long) records);
    getRuntimeContext().getLongCounter("splits").add(last ? 1L : 0L);
    mark.seen = active;
    if (split < 0 || split == mark.next) {
      mark.newest = Math.max(mark.newest, newest);
      if (last) {
        mark.next++;
        while (mark.ahead.containsKey(Long.valueOf(mark.next))) {
          Object[] done = (Object[]) mark.ahead.get(Long.valueOf(mark.next));
          mark.newest = Math.max(mark.newest, ((Long) done[0]).longValue());
          mark.ahead.remove(Long.valueOf(mark.next));
          if (!((Boolean) done[1]).booleanValue()) {
            break;
          }
          mark.next++;
        }
      }
    } else if (split > mark.next) {
      Object[] done = (Object[]) mark.ahead.get(Long.valueOf(split));
      long before = done == null ? Long.MIN_VALUE : ((Long) done[0]).longValue();
      mark.ahead.put(Long.valueOf(split),
          new Object[] {Long.valueOf(Math.max(before, newest)), Boolean.valueOf(last)});
    }
  }

  private long activeTime() {
    long now = processingTimeService.getCurrentProcessingTime();
    return active + (lastArrival == 0 ? 0 : Math.min(now - lastArrival, idleMs / 2));
  }

  private void advanceWatermark() {
    long now = activeTime();
    long least = Long.MAX_VALUE;
    Iterator marks = partitions.values().iterator();
    while (marks.hasNext()) {
      Mark mark = (Mark) marks.next();
      boolean idle = mark.splits < 0 && idleMs > 0 && now - mark.seen >= idleMs;
      if (!mark.finished() && !idle) {
        least = Math.min(least, mark.newest);
      }
    }
    if (least != Long.MAX_VALUE && least != Long.MIN_VALUE && least - delayMs > sent) {
      sent = least - delayMs;
      output.emitWatermark(new Watermark(sent));
    }
  }

  public void onProcessingTime(long now) throws Exception {
    advanceWatermark();
    processingTimeService.registerTimer(now + idleMs / 2, this);
  }

  /* Only the end of the input is taken from above: marks are made here. */
  public void processWatermark(Watermark mark) throws Exception {
    if (mark.getTimestamp() == Long.MAX_VALUE) {
      super.processWatermark(mark);
    }
  }

  private byte[] write() throws Exception {
    java.io.ByteArrayOutputStream bytes = new java.io.ByteArrayOutputStream();
    java.io.DataOutputStream out = new java.io.DataOutputStream(bytes);
    out.writeInt(VERSION);
    out.writeLong(sent);
    out.writeInt(partitions.size());
    Iterator entries = partitions.entrySet().iterator();
    while (entries.hasNext()) {
      Map.Entry entry = (Map.Entry) entries.next();
      Mark mark = (Mark) entry.getValue();
      out.writeUTF((String) entry.getKey());
      out.writeLong(mark.splits);
      out.writeLong(mark.next);
      out.writeLong(mark.newest);
      out.writeInt(mark.ahead.size());
      Iterator ahead = mark.ahead.entrySet().iterator();
      while (ahead.hasNext()) {
        Map.Entry split = (Map.Entry) ahead.next();
        Object[] done = (Object[]) split.getValue();
        out.writeLong(((Long) split.getKey()).longValue());
        out.writeLong(((Long) done[0]).longValue());
        out.writeBoolean(((Boolean) done[1]).booleanValue());
      }
    }
    return bytes.toByteArray();
  }

  private void read(byte[] saved) throws Exception {
    java.io.DataInputStream in = new java.io.DataInputStream(new java.io.ByteArrayInputStream(saved));
    int version = in.readInt();
    if (version != VERSION) {
      throw new IllegalStateException("Marks: state version " + version + " is not known, this is "
          + VERSION + ": start from a checkpoint of this version");
    }
    sent = Math.max(sent, in.readLong());
    for (int n = in.readInt(); n > 0; n--) {
      Mark mark = mark(in.readUTF());
      mark.splits = in.readLong();
      mark.next = in.readLong();
      mark.newest = in.readLong();
      for (int m = in.readInt(); m > 0; m--) {
        Long split = Long.valueOf(in.readLong());
        mark.ahead.put(split,
            new Object[] {Long.valueOf(in.readLong()), Boolean.valueOf(in.readBoolean())});
      }
    }
  }
}
