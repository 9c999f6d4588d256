"""Messages: typed, checksummed values over any stream; the codec does no I/O, MessageStream sends and receives."""

from bbipc.messages.frames import MAX_MESSAGE_SIZE, Decoder, encode, encode_header
from bbipc.messages.message import Message, MessageFlag, MessageType
from bbipc.messages.stream import MessageStream

__all__ = [
    "MAX_MESSAGE_SIZE",
    "Decoder",
    "Message",
    "MessageFlag",
    "MessageStream",
    "MessageType",
    "encode",
    "encode_header",
]
