"""An ssh-agent that holds a security key made of software, and can be told not to ask its user."""

from __future__ import annotations

import base64
import hashlib
import socket
import socketserver
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cmdsvc.ssh.blobs import string

PRESENT, VERIFIED = 1, 4
APPLICATION = b"ssh:"


def _number(value: int) -> bytes:
    return string(value.to_bytes(value.bit_length() // 8 + 1, "big"))


class SecurityKey:
    """`flags` is what it says of its user in each signature (PROTOCOL.u2f)."""

    def __init__(self, kind: str, flags: int = PRESENT) -> None:
        self.flags = flags
        self.kind = kind.encode()
        if kind == "sk-ssh-ed25519@openssh.com":
            self._ed = ed25519.Ed25519PrivateKey.generate()
            point = self._ed.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            parts = [point, APPLICATION]
        else:
            self._ec = ec.generate_private_key(ec.SECP256R1())
            point = self._ec.public_key().public_bytes(
                Encoding.X962, PublicFormat.UncompressedPoint
            )
            parts = [b"nistp256", point, APPLICATION]
        self.blob = b"".join(map(string, [self.kind, *parts]))

    def write(self, path: Path) -> Path:
        """Its public half into a file."""
        text = base64.b64encode(self.blob).decode()
        path.write_text(f"{self.kind.decode()} {text} a security key\n")
        return path

    def sign(self, data: bytes) -> bytes:
        tail = bytes([self.flags]) + (7).to_bytes(4, "big")
        message = hashlib.sha256(APPLICATION).digest() + tail + hashlib.sha256(data).digest()
        if self.kind.startswith(b"sk-ssh"):
            signature = self._ed.sign(message)
        else:
            r, s = decode_dss_signature(self._ec.sign(message, ec.ECDSA(hashes.SHA256())))
            signature = _number(r) + _number(s)
        return string(self.kind) + string(signature) + tail


class Agent:
    """Serves the one key at `path`."""

    def __init__(self, path: Path, key: SecurityKey) -> None:
        agent = self
        self.path = path
        self.key = key

        class Handler(socketserver.BaseRequestHandler):
            request: socket.socket

            def handle(self) -> None:
                while head := self.request.recv(4, socket.MSG_WAITALL):
                    body = self.request.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
                    self.request.sendall(string(agent.answer(body)))

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(str(path), Handler)

    def answer(self, request: bytes) -> bytes:
        """draft-ietf-sshm-ssh-agent: the list of keys, and a signature."""
        if request[0] == 11:
            return bytes([12]) + (1).to_bytes(4, "big") + string(self.key.blob) + string(b"sk")
        if request[0] == 13 and request[1:].startswith(string(self.key.blob)):
            rest = request[1 + 4 + len(self.key.blob) :]
            size = int.from_bytes(rest[:4], "big")
            return bytes([14]) + string(self.key.sign(rest[4 : 4 + size]))
        return bytes([5])

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
