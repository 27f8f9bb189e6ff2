"""Datasets with published splits."""

from afnio.utils.datasets.download import DownloadError
from afnio.utils.datasets.facility_support import FacilitySupport
from afnio.utils.datasets.trec import TREC

__all__ = ["DownloadError", "FacilitySupport", "TREC"]
