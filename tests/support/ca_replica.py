"""One replica of an authority as a process of its own, with its clients: threads that ask without a pause.

    python -m tests.support.ca_replica FOLDER URL NUMBER CLIENTS

Tells what happens in lines of JSON on standard output, each written after the fact it tells of: ["ready"],
["issued", serial, SPIFFE ID, key hash], ["refused"], ["away", text], ["rotated", text], ["heard", counter, seconds].
Ends at the end of its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from identity.authority import new_key
from identity.ca.keys import key_hash
from identity.ca.model import CallerFacts, NotAllowed, StoreUnavailable
from identity.ca.service import CaService
from identity.spiffe import SpiffeId

CONTESTED = 10  # identities that everybody wants for himself
SHARED_KEY = ec.derive_private_key(4711, ec.SECP256R1())  # that everybody asks for, each for another identity
KEYS = 32  # a client


def now() -> datetime:
    return datetime.now(UTC)


def tell(*fact: Any) -> None:
    os.write(1, json.dumps(fact).encode() + b"\n")


class Replica:
    """``number`` tells replicas apart, not what they are."""

    def __init__(self, ca: CaService, number: int) -> None:
        self.ca = ca
        self.number = number
        self.stop = threading.Event()

    def client(self, client: int) -> None:
        own, keys = f"/w/{self.number}-{client}", [new_key() for _ in range(KEYS)]
        turn = 0
        while not self.stop.is_set():
            turn += 1
            if turn % 20 == 0:
                self.ask(f"/contested/{turn // 20 % CONTESTED}", keys[0], exclusive=True)
            elif turn % 50 == 1:
                self.ask(f"/shared/{self.number}-{client}", SHARED_KEY)
            else:
                self.ask(own, keys[1 + turn % (KEYS - 1)])

    def ask(self, path: str, key: Any, **more: Any) -> None:
        caller = CallerFacts("agent", f"spiffe://{self.ca.trust_domain}/host/{self.number}", f"replica {self.number}")
        wanted = SpiffeId.of(self.ca.trust_domain, path)
        try:
            made = self.ca.issue_x509(wanted, key.public_key(), caller=caller, now=now(), **more)
            tell("issued", made.serial, str(wanted), key_hash(key.public_key()))
        except NotAllowed:
            tell("refused")
        except StoreUnavailable as error:
            tell("away", str(error))
            self.stop.wait(0.2)

    def rotate(self) -> None:
        while not self.stop.wait(0.2):
            try:
                for what in self.ca.tick(now()):
                    tell("rotated", what)
            except StoreUnavailable as error:
                tell("away", str(error))

    def listen(self) -> None:
        seen = self.ca.changed()
        while not self.stop.is_set():
            try:
                found = self.ca.wait_change(seen, 1.0)
            except StoreUnavailable:
                self.stop.wait(0.2)
                continue
            if found != seen:
                tell("heard", found, time.monotonic())
            seen = found


def main() -> None:
    folder, url, number, clients = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with CaService.open(folder, url, now=now()) as ca:
        replica = Replica(ca, number)
        jobs = [replica.rotate, replica.listen, *(lambda n=n: replica.client(n) for n in range(clients))]
        threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        tell("ready")
        sys.stdin.readline()
        for thread in threads:
            thread.start()
        sys.stdin.read()
        replica.stop.set()
        for thread in threads:
            thread.join(20)


if __name__ == "__main__":
    main()
