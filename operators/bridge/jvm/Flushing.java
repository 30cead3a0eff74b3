import java.util.HashMap;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeMap;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.core.memory.DataInputDeserializer;
import org.apache.flink.core.memory.DataOutputSerializer;
import org.apache.flink.runtime.state.StateInitializationContext;
import org.apache.flink.runtime.state.StateSnapshotContext;
import org.apache.flink.streaming.api.graph.StreamConfig;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.api.operators.Output;
import org.apache.flink.streaming.api.watermark.Watermark;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;
import org.apache.flink.streaming.runtime.tasks.StreamTask;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.binary.BinaryStringData;
import org.apache.flink.table.runtime.arrow.serializers.ArrowSerializer;
import org.apache.flink.table.runtime.typeutils.RowDataSerializer;
import org.apache.flink.table.types.logical.LogicalTypeRoot;
import org.apache.flink.table.types.logical.RowType;
import org.apache.flink.types.Row;
import org.apache.flink.util.OutputTag;

/*
 * Everything below is compiled by Flink's own Janino on each task manager, as Flink does with the
 * operators it generates for SQL. Janino knows no lambdas and infers no generics: raw types, casts.
 */

/** Holds elements back and hands them on together: by count, bytes, age, before a barrier, at the end. */
abstract class Flushing extends AbstractStreamOperator
        implements OneInputStreamOperator, ProcessingTimeService.ProcessingTimeCallback {
  private final int maxRecords;
  final long maxBytes;
  private final long maxAgeMs;
  private transient int records;
  private transient long bytes;
  private transient long oldest;
  private transient boolean timerSet;

  Flushing(int maxRecords, long maxBytes, long maxAgeMs) {
    this.maxRecords = maxRecords;
    this.maxBytes = maxBytes;
    this.maxAgeMs = maxAgeMs;
  }

  /** Hands the held elements on. Called only when there are some. */
  abstract void emit() throws Exception;

  final void added(long size) throws Exception {
    records++;
    bytes += size;
    if (records == 1) {
      oldest = processingTimeService.getCurrentProcessingTime();
      armTimer(oldest + maxAgeMs);
    }
    if (records >= maxRecords || bytes >= maxBytes) {
      flush();
    }
  }

  final void flush() throws Exception {
    if (records > 0) {
      emit();
      records = 0;
      bytes = 0;
    }
  }

  /* One timer at a time: when it fires for a younger batch it is set again for what is left of its age. */
  private void armTimer(long at) {
    if (!timerSet) {
      timerSet = true;
      processingTimeService.registerTimer(at, this);
    }
  }

  public void onProcessingTime(long now) throws Exception {
    timerSet = false;
    if (records > 0) {
      if (now - oldest >= maxAgeMs) {
        flush();
      } else {
        armTimer(oldest + maxAgeMs);
      }
    }
  }

  public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
    flush();
    super.prepareSnapshotPreBarrier(checkpointId);
  }

  public void processWatermark(Watermark mark) throws Exception {
    flush();
    super.processWatermark(mark);
  }

  public void finish() throws Exception {
    flush();
    super.finish();
  }
}
