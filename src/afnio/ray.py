"""Ray: functions of lanes in the workers of a Ray cluster. Install `afnio[ray]`.

    workers = functools.partial(afnio.ray.RayExecutor, num_gpus=1)
    score, _ = evaluator(prediction, target, eval_fn, "tests passed", executor=workers)

Without an address, a cluster is started on this machine. Ray opens ports on every interface by itself, also if it is
given 127.0.0.1, and whoever reaches them runs code here. So it is set to loopback before its import, and a cluster that
listens anywhere else is ended at once.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, final

from afnio.errors import ExecutorError, WorkerLostError, reason

__all__ = ["RayExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_LOCAL: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # "loopback only", on every system
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Otherwise a call of Ray's starts a second cluster by itself when this one has just gone.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
# Otherwise Ray ends the whole program 60 seconds after a head has died, though another cluster runs by then:
# a thread of Ray that nothing stops still waits for the old head. `_Session` sees to it that the lanes don't
# wait.
_OURS_TO_END: Final = {"RAY_gcs_rpc_server_reconnect_timeout_s": "1000000"}
# Otherwise Ray waits seven minutes for the tasks of a host that is gone without a word.
_PROBES: Final = {
    "RAY_grpc_client_keepalive_time_ms": "20000",
    "RAY_grpc_client_keepalive_timeout_ms": "10000",
}
# Ray's errors for a task whose own worker ended.
_LOST: Final = ("WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "LocalRayletDiedError")


@final
class RayExecutor(Executor):
    """Runs tasks on a Ray cluster. Pass the class itself as `executor=`, or a partial of it with its arguments.

    It uses the cluster that this process is connected to, if it is. Ray never runs a task again by itself: Afnio does.
    If the cluster is gone, the open tasks fail with a BrokenExecutor within half a minute.

    Args:
        address: of a running cluster, "auto" for the one that Ray finds, None to start one on this machine.
        **options: of each task, as for Ray's `.options()`: `num_cpus` (1), `num_gpus`, `resources`,
            `scheduling_strategy`, `runtime_env`, ….

    Raises:
        ImportError: if Ray isn't installed.
        ExecutorError: if a cluster that was started listens beyond loopback, or the program's own connection has lost
            its cluster.
    """

    def __init__(self, address: str | None = None, **options: Any) -> None:
        ray = _imported(local=address is None)
        self._ray = ray
        self._options = {"num_cpus": 1, **options, "max_retries": 0}
        cpus = float(self._options["num_cpus"]) or 1.0
        self._open: dict[_RayFuture, None] = {}
        self._closed = ""
        self._lock = threading.Lock()
        self._session = _join(ray, address, self)
        # One function for all tasks: Ray sends each new one to the cluster's head, and waits for that.
        self._run = ray.remote(_run).options(**self._options)
        self._max_workers = max(1, int(ray.cluster_resources().get("CPU", 1.0) / cpus))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._lock:
            if self._closed:
                raise RuntimeError(self._closed)
            future = _RayFuture(self._ray, self._run.remote(fn, *args, **kwargs))
            self._open[future] = None
        future.add_done_callback(lambda done: self._open.pop(future, None))
        future.follow()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End it. The last executor ends the cluster, if one of them started it."""
        with self._lock:
            self._closed = self._closed or "cannot schedule new futures after shutdown"
            left = list(self._open)
        for future in left:
            if cancel_futures:
                future.cancel()
            elif wait:
                with suppress(Exception, CancelledError):
                    future.result()
        if wait or not self._open:
            self._session.leave(self)

    def _break(self, why: str) -> None:
        """Fail all open tasks."""
        with self._lock:
            self._closed = why
            left = list(self._open)
        for future in left:
            future.fail(BrokenExecutor(why))


def _run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


@final
class _RayFuture(Future[Any]):
    """The future of a Ray task. Cancelling it ends the task, running or not."""

    def __init__(self, ray: Any, ref: Any) -> None:
        super().__init__()
        self._ray = ray
        self._ref = ref
        self._ending = threading.RLock()  # a callback may cancel

    def follow(self) -> None:
        self._ref.future().add_done_callback(self._settle)

    def cancel(self) -> bool:
        with self._ending:
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()
        with suppress(Exception):  # it has ended, or its cluster has
            self._ray.cancel(self._ref, force=True)
        return True

    def fail(self, error: BaseException) -> None:
        with self._ending:
            if not self.done():
                self.set_exception(error)

    def _settle(self, done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            if type(error).__name__ in _LOST:
                error = WorkerLostError(str(error).partition("\n")[0])
            self.fail(getattr(error, "cause", None) or error)
            return
        with self._ending:
            if not self.done():
                self.set_result(done.result())


# The connection


@final
class _Session:
    """This process's connection to a cluster, which its executors share.

    A thread looks whether the cluster is there. If it isn't, Ray's own futures never end. So the connection is closed
    then, and the lanes run on another one.

    Attributes:
        ours: True if an executor made the connection.
        gone: why it can't be used, or "".
    """

    def __init__(self, ray: Any, *, ours: bool) -> None:
        self.ours = ours
        self.gone = ""
        self._ray = ray
        self._node = _node_of(ray)
        self._executors: list[RayExecutor] = []
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="afnio-ray-watch", daemon=True).start()

    def join(self, executor: RayExecutor) -> None:
        self._executors.append(executor)

    def leave(self, executor: RayExecutor) -> None:
        with _lock:
            if executor in self._executors:
                self._executors.remove(executor)
            if not self._executors and not self.gone:
                self._close()

    def _close(self) -> None:
        """End the watch, and the connection if it is ours. Needs the lock."""
        global _session
        self._ended.set()
        if _session is self:
            _session = None
        if self.ours and self.open:
            self._ray.shutdown()

    @property
    def open(self) -> bool:
        """False once somebody else has closed the connection."""
        return _node_of(self._ray) == self._node

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK):
            why = self._look() if self.open else "the program has called ray.shutdown()"
            if why and not self._ended.is_set():
                self._end(why)

    def _look(self) -> str:
        """Return why the cluster can't be used, or ""."""
        lost: list[str] = []

        def look() -> None:
            try:
                alive = any(node["Alive"] for node in self._ray.nodes() if node["NodeID"] == self._node)
                lost.append("" if alive else "the node of this program has died")
            except Exception as error:
                lost.append(reason(error))

        looking = threading.Thread(target=look, name="afnio-ray-look", daemon=True)
        looking.start()
        looking.join(_PATIENCE)
        return lost[0] if lost else f"its head has not answered for {_PATIENCE:g} s"

    def _end(self, why: str) -> None:
        with _lock:
            self.gone = f"the Ray cluster is gone ({why})"
            self._ended.set()
            # Before the futures fail: their lanes make a new connection then.
            if self.open:
                with suppress(Exception):
                    self._ray.shutdown()
            executors, self._executors = self._executors, []
        for executor in executors:
            executor._break(self.gone)


def _node_of(ray: Any) -> str | None:
    """Return the id of the node that this process is connected to. Each connection to a local cluster has another."""
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else None


_lock: Final = threading.Lock()
_session: _Session | None = None
# Seconds between looks at whether the cluster is there.
_LOOK: Final = 2.0
# Seconds that the head has for an answer.
_PATIENCE: Final = 20.0


def _join(ray: Any, address: str | None, executor: RayExecutor) -> _Session:
    """Return the process's connection, made if there is none.

    Raises:
        ExecutorError: see RayExecutor.
    """
    global _session
    with _lock:
        connected = ray.is_initialized()
        if _session is None or not _session.open:
            if not connected and _session is not None and _session.gone and not _session.ours and not address:
                raise ExecutorError(
                    f"the program's Ray cluster must be there (got: {_session.gone}); connect again with "
                    "ray.init(…), or pass an address"
                )
            if not connected:
                _start(ray, address)
            _session = _Session(ray, ours=not connected)
        _session.join(executor)
        return _session


def _imported(*, local: bool) -> Any:
    for name, value in {**_OURS_TO_END, **(_LOCAL if local else _PROBES)}.items():
        os.environ.setdefault(name, value)
    if local:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray is not installed; run pip install 'afnio[ray]'") from error
    return ray


def _start(ray: Any, address: str | None) -> None:
    before = _listening()
    with _own_sigterm():
        if address is not None:
            ray.init(address=address, log_to_driver=False)
            return
        # Without "local", Ray would connect to the last cluster that was started on this machine, if it runs or not.
        ray.init("local", include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    opened = {address for inode, address in _listening().items() if inode not in before}
    if opened:
        ray.shutdown()
        raise ExecutorError(
            f"a local Ray cluster must listen on loopback only (got {', '.join(sorted(opened))}); set "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before anything imports ray"
        )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the program's handler of SIGTERM, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _listening() -> dict[str, str]:
    """Return the sockets of this process and its descendants that listen beyond loopback: address by inode.

    Empty on systems without /proc, where Ray listens on loopback by default.
    """
    listening: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                host, _, port = fields[1].partition(":")
                if fields[3] == "0A" and not _is_loopback(host):
                    listening[fields[9]] = f"port {int(port, 16)}"
    own = {inode for process in _family() for inode in _sockets_of(process)}
    return {inode: address for inode, address in listening.items() if inode in own}


def _is_loopback(host: str) -> bool:
    """Return True for an address of /proc/net: 127.x.x.x, ::1 or ::ffff:127.x.x.x, as little-endian words."""
    return (host.endswith("7F") and (len(host) == 8 or host.startswith("0" * 16 + "FFFF0000"))) or (
        host == "0" * 24 + "01000000"
    )


def _family() -> list[str]:
    """Return this process and its descendants."""
    parents: dict[str, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[stat.parent.name] = stat.read_text().rpartition(")")[2].split()[1]
    family = [str(os.getpid())]
    for member in family:  # it grows
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _sockets_of(process: str) -> Iterator[str]:
    with suppress(OSError):
        for link in Path("/proc", process, "fd").iterdir():
            with suppress(OSError):
                target = os.readlink(link)
                if target.startswith("socket:["):
                    yield target[8:-1]
