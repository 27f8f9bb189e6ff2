"""The journal: what was paid for, kept on disk. It knows no text and no HTTP; replies are opaque bytes."""

from __future__ import annotations

from afnio.runtime.journal.errors import JournalClosedError as JournalClosedError
from afnio.runtime.journal.errors import JournalForkedError as JournalForkedError
from afnio.runtime.journal.errors import JournalFormatError as JournalFormatError
from afnio.runtime.journal.errors import JournalLockedError as JournalLockedError
from afnio.runtime.journal.journal import Journal as Journal
from afnio.runtime.journal.journal import Mode as Mode
from afnio.runtime.journal.ledger import Item as Item
from afnio.runtime.journal.ledger import Spent as Spent
from afnio.runtime.journal.matching import ProgramChanged as ProgramChanged
from afnio.runtime.journal.record import Record as Record
from afnio.runtime.journal.stat import JournalStat as JournalStat
