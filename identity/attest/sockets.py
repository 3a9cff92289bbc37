"""The process behind a Unix socket, as the kernel tells it: credentials, pidfd, and who holds the other end.

SO_PEERPIDFD (Linux 6.5) gives the process that connected itself. Before, there is only its number, and the number may
be another's by the time that ``pidfd_open`` is called: the caller connects, hands the connection to a child, ends,
and waits until somebody better gets the number. Therefore on old kernels the process found must be seen to hold the
other end of this very connection: ``sock_diag`` names the inode of the peer socket, and one of the links in
``/proc/PID/fd`` must be it. Whoever came to the number by chance does not hold it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import Final

from identity.attest.proc import AttestationError, Proc

SO_PEERPIDFD: Final = 77  # asm-generic/socket.h, Linux 6.5
_UCRED: Final = struct.Struct("iII")  # pid, uid, gid
_GONE: Final = frozenset({errno.ESRCH, errno.EINVAL, errno.ENODATA})

# linux/sock_diag.h, linux/unix_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_UDIAG_SHOW_PEER: Final = 4
_UNIX_DIAG_PEER: Final = 2
_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_REQUEST: Final = struct.Struct("=BBHIIIII")  # unix_diag_req: family, protocol, pad, states, inode, show, cookie
_ANSWER: Final = struct.Struct("=BBBBIII")  # unix_diag_msg
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever called connect(). Raises AttestationError."""
    if sock.family != socket.AF_UNIX:
        raise AttestationError("not_local")
    try:
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError as error:
        raise AttestationError("not_local", error.strerror or "") from None
    if pid <= 0:
        raise AttestationError("other_namespace")
    return pid, uid, gid


def peer_pidfd(sock: socket.socket) -> int | None:
    """A pidfd of the process that connected; None when the kernel cannot tell. Raises AttestationError (gone)."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno == errno.ENOPROTOOPT:
            return None
        raise AttestationError("gone" if error.errno in _GONE else "unreadable", error.strerror or "") from None
    return int(struct.unpack("i", raw)[0])


def pidfd_of(pid: int) -> int:
    """A pidfd of whoever has the number now. Raises AttestationError."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise AttestationError("gone" if error.errno in _GONE else "unreadable", error.strerror or "") from None


def has_ended(pidfd: int) -> bool:
    """Whether the process has ended, reaped or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def pid_of(pidfd: int) -> int:
    """The number of the pidfd's process as seen from our namespace: -1 once it was reaped, 0 when it is not in ours.
    Raises AttestationError."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}", "rb", buffering=0) as file:
            for line in file.read(4096).splitlines():
                if line.startswith(b"Pid:"):
                    return int(line[4:])
    except (OSError, ValueError):
        pass
    raise AttestationError("unreadable", "no number in the information on its pidfd")


def holds_other_end(proc: Proc, sock: socket.socket) -> bool:
    """Whether the process has the peer socket of ``sock`` open. Raises OSError when that cannot be seen."""
    wanted = f"socket:[{peer_inode(sock)}]"
    for name in proc.names("fd"):
        try:
            if proc.link(f"fd/{name}") == wanted:
                return True
        except FileNotFoundError:
            continue  # closed meanwhile
    return False


def peer_inode(sock: socket.socket) -> int:
    """The inode of the socket at the other end. Raises OSError: it is closed, or sock_diag does not tell."""
    request = _REQUEST.pack(
        socket.AF_UNIX, 0, 0, 0xFFFFFFFF, os.fstat(sock.fileno()).st_ino, _UDIAG_SHOW_PEER, 0xFFFFFFFF, 0xFFFFFFFF
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1)
        length = _HEADER.size + len(request)
        netlink.sendto(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, 1, 0, 0) + request, (0, 0))
        return _peer_of(netlink.recv(4096))


def _peer_of(answer: bytes) -> int:
    length, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        raise OSError("the kernel does not tell whose the other end is")
    at = _HEADER.size + _ANSWER.size
    while at + _ATTRIBUTE.size <= length:
        size, name = _ATTRIBUTE.unpack_from(answer, at)
        if name == _UNIX_DIAG_PEER:
            return int(struct.unpack_from("=I", answer, at + _ATTRIBUTE.size)[0])
        at += max(_ATTRIBUTE.size, (size + 3) & ~3)
    raise OSError("the other end is closed")
