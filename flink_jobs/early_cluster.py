"""Flink's mini-cluster, started while the job is still being planned.

Flink would start it when the job is handed over, and its start takes a fifth of a short run. It
needs nothing of the plan but how many slots there are to be. What is done here is what Flink's
`LocalExecutor` does, in another order. If the plan needs another number of slots than was thought,
or the settings name one, Flink does it by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from pyflink.common import JobClient
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway

#: Starts a job by its name.
Execute = Callable[[str], JobClient]

_LOOK_EVERY_S: Final = 0.02
_OF_THE_USER: Final = ("minicluster.number-of-taskmanagers", "taskmanager.numberOfTaskSlots")


def early_cluster(env: StreamExecutionEnvironment, slots: int) -> Execute:
    """Begin to start a mini-cluster, and return what runs the job on it that is built meanwhile.

    Args:
        env: what the job will be built in, with all options set.
        slots: the parallelism of the widest step of the job.
    """
    if any(_configuration(env).containsKey(option) for option in _OF_THE_USER):
        by_itself: Execute = env.execute_async
        return by_itself
    return _EarlyCluster(env, slots).execute


class _EarlyCluster:
    """A mini-cluster for one job; it ends with the job."""

    def __init__(self, env: StreamExecutionEnvironment, slots: int) -> None:
        """Start it in a thread of Java's."""
        self._env = env
        self._slots = slots
        minicluster = get_gateway().jvm.org.apache.flink.runtime.minicluster
        self._cluster = minicluster.MiniCluster(self._cluster_settings())
        self._started = _in_a_thread(self._cluster, "start")

    def execute(self, name: str) -> JobClient:
        """Run the job; returns when Flink has taken it."""
        environment = self._env._j_stream_execution_environment
        graph = self._env._generate_stream_graph(clear_transformations=True, job_name=name)
        self._started.get()
        if graph.getMaximumParallelism() != self._slots:
            self._cluster.close()
            return JobClient(environment.executeAsync(graph))
        executors = get_gateway().jvm.org.apache.flink.client.deployment.executors
        configuration = _configuration(self._env)
        graph = executors.PipelineExecutorUtils.getStreamGraph(graph, configuration)
        graph.serializeUserDefinedInstances()
        job_id = self._cluster.submitJob(graph).get().getJobID()
        self._wait_until_taken(job_id)
        return self._client(job_id)

    def _cluster_settings(self) -> Any:
        flink = get_gateway().jvm.org.apache.flink
        configuration = flink.configuration.Configuration(_configuration(self._env))
        port = flink.configuration.RestOptions.BIND_PORT
        if not configuration.contains(port):
            configuration.set(port, "0")
        minicluster = flink.runtime.minicluster
        builder = minicluster.MiniClusterConfiguration.Builder()
        builder.setConfiguration(configuration)
        builder.setNumTaskManagers(1)
        builder.setRpcServiceSharing(minicluster.RpcServiceSharing.SHARED)
        builder.setNumSlotsPerTaskManager(self._slots)
        return builder.build()

    def _wait_until_taken(self, job_id: Any) -> None:
        """Until it has begun, or has failed: its state may not fit, for instance."""
        while (status := self._cluster.getJobStatus(job_id).get().toString()) == "INITIALIZING":
            time.sleep(_LOOK_EVERY_S)
        if status == "FAILED":
            self._cluster.requestJobResult(job_id).get().toJobExecutionResult(_class_loader())

    def _client(self, job_id: Any) -> JobClient:
        client = get_gateway().jvm.org.apache.flink.runtime.minicluster.MiniClusterJobClient
        ends_with_it = client.JobFinalizationBehavior.SHUTDOWN_CLUSTER
        return JobClient(client(job_id, self._cluster, _class_loader(), ends_with_it))


def _configuration(env: StreamExecutionEnvironment) -> Any:
    return env._j_stream_execution_environment.getConfiguration()


def _in_a_thread(on: Any, method: str) -> Any:
    """Call a method that takes nothing and returns nothing; returns Java's future of the call.

    Not from a thread of Python's: py4j would hand the thread of Java that has served the calls so
    far to whichever asks first, and Flink's planner keeps things by thread.
    """
    jvm = get_gateway().jvm
    invoke = jvm.java.lang.invoke
    takes_nothing = invoke.MethodType.methodType(jvm.java.lang.Void.TYPE)
    handle = invoke.MethodHandles.publicLookup().findVirtual(on.getClass(), method, takes_nothing)
    runnable = jvm.java.lang.Class.forName("java.lang.Runnable")
    call = invoke.MethodHandleProxies.asInterfaceInstance(runnable, handle.bindTo(on))
    return jvm.java.util.concurrent.CompletableFuture.runAsync(call)


def _class_loader() -> Any:
    return get_gateway().jvm.Thread.currentThread().getContextClassLoader()
