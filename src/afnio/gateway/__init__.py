"""`afnio gateway`: one process that admits the calls of all others, in any language."""

from afnio.gateway._server import GatewayOptions as GatewayOptions
from afnio.gateway._server import serve as serve
