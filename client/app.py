"""The Flower ClientApp: bytes in, the installed site agent, bytes out.

Flower runs this at a site for a stock SuperNode and for its simulation engine. The code is the site's own wheel, not
what a coordinator sent, and a message chooses neither the site's directory nor its keys.
"""

import logging
import os
from collections.abc import Callable

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.agent_channel import AgentChannel
from client.site_files import agent_socket, site_directory
from common.errors import FederationError
from common.exits import NAMES_THAT_TRAVEL
from common.flower import pack, unpack
from common.passphrase import read_passphrase

ERROR_CODE = 2
UNSAID = "SiteError"

_LOG = logging.getLogger("fedward.client.app")

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Let the site's agent answer one message: the one that listens on the node's socket.

    In a simulation there is none, and the agent is rebuilt from disk, since the process may be a new one.
    """
    socket = agent_socket(context.node_config)

    def handle(body: bytes) -> bytes:
        if socket is not None:
            with AgentChannel(socket) as channel:
                return channel.handle(body, message.metadata.ttl)

        from client.agent import SiteAgent

        directory = site_directory(context.node_config, os.environ)
        with SiteAgent.open(directory, passphrase=read_passphrase(os.environ)) as agent:
            return agent.handle(body)

    return answer(message, handle)


def answer(message: Message, handle: Callable[[bytes], bytes]) -> Message:
    """The reply to one message. Of an exception only a name crosses the wire.

    The name is one of `common.exits.NAMES_THAT_TRAVEL`. Every other class becomes `SiteError`: which exception a
    computation raised can depend on the records.
    """
    try:
        return Message(pack(handle(unpack(message.content))), reply_to=message)
    except Exception as error:
        name = type(error).__name__
        name = name if isinstance(error, FederationError) and name in NAMES_THAT_TRAVEL else UNSAID
        _LOG.error("a message was not answered: %s", type(error).__name__)
        return Message(Error(ERROR_CODE, name), reply_to=message)
