"""The engine: tasks, slots, admission, retries, events. It knows no text, no gradients, no HTTP."""

from __future__ import annotations

from afnio.runtime.callables import call_in_node as call_in_node
from afnio.runtime.callables import run as run
from afnio.runtime.callables import to_thread as to_thread
from afnio.runtime.launch import Job as Job
from afnio.runtime.launch import Launch as Launch
from afnio.runtime.limits import Account as Account
from afnio.runtime.limits import Limits as Limits
from afnio.runtime.runtime import close as close
from afnio.runtime.runtime import current_runtime as current_runtime
from afnio.runtime.scope import Scope as Scope
from afnio.runtime.scope import current_scope as current_scope
from afnio.runtime.scope import scope as scope
from afnio.runtime.slot import NO_FEEDBACK as NO_FEEDBACK
from afnio.runtime.slot import PENDING as PENDING
from afnio.runtime.slot import Failure as Failure
from afnio.runtime.slot import Slot as Slot
from afnio.runtime.tolerance import tolerate as tolerate
from afnio.runtime.waiting import set_sync_mode as set_sync_mode
from afnio.runtime.work import Work as Work
