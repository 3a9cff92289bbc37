"""What the policy tools cost: 1 000 test cases, the exact difference of two sets of 500 rules, 100 000 flows.

    python -m benchmarks.policy_tools

Wall seconds, once each: these are commands that people wait for. The two sets are as a mesh has them (callers by
principal, methods, paths of all forms, a header here and there); "hard" ones are made of overlapping wildcards that
defeat every short cut, so that the search must end by its bound, and say so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from collections.abc import Callable
from typing import Any

from config.documents import parse_documents
from config.problems import Problems
from config.resources.authorization import AuthorizationPolicy
from proxy.observe.flows import Flow
from proxy.policy.analysis import Diff, diff
from proxy.policy.coverage import coverage
from proxy.policy.learn import learn
from proxy.policy.lint import lint
from proxy.policy.mutate import mutate
from proxy.policy.replay import replay
from proxy.policy.suite import Suite, read_suites, run

DOMAIN = "shop.internal"
METHODS = ["GET", "POST", "PUT", "DELETE"]


def documents(seed: int, rules: int, rule: Callable[[random.Random], dict[str, Any]]) -> list[AuthorizationPolicy]:
    """Policies of ten rules each, one in ten of them DENY."""
    chance = random.Random(seed)
    texts = []
    for number in range(max(rules // 10, 1)):
        spec: dict[str, Any] = {
            "action": "DENY" if number % 10 == 0 else "ALLOW",
            "rules": [rule(chance) for _ in range(min(rules, 10))],
        }
        if number % 3:
            spec["selector"] = {"matchLabels": {"app": f"w{number % 20}"}}
        head = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
        metadata = {"name": f"p{number}", "namespace": f"n{number % 5}"}
        texts.append(json.dumps({**head, "metadata": metadata, "spec": spec}))
    return list(parse_documents("\n---\n".join(texts)).policies)


def usual(chance: random.Random) -> dict[str, Any]:
    callers = [caller(chance) for _ in range(chance.choice([1, 1, 2]))]
    paths = [a_path(chance) for _ in range(chance.choice([1, 2]))]
    found: dict[str, Any] = {
        "from": [{"source": {"principals": callers}}],
        "to": [{"operation": {"methods": chance.sample(METHODS, chance.choice([1, 2])), "paths": paths}}],
    }
    if chance.random() < 0.1:
        found["when"] = [{"key": "request.headers[x-team]", "values": [f"t{chance.randrange(5)}*"]}]
    return found


def caller(chance: random.Random) -> str:
    return f"{DOMAIN}/ns/n{chance.randrange(40)}/sa/s{chance.randrange(60)}"


def a_path(chance: random.Random) -> str:
    number = chance.randrange(50)
    return chance.choice([f"/v1/a{number}/*", f"/v1/b{number}", f"/v2/{{*}}/x{number}", f"*.j{number % 9}"])


def hard(chance: random.Random) -> dict[str, Any]:
    """Nothing but wildcards that meet each other."""

    def word() -> str:
        return chance.choice(["a", "b", "ab", "ba", "x", "y"])

    source = {"principals": [chance.choice([f"td/ns/{word()}*", f"*/{word()}", f"*{word()}"])]}
    paths = [chance.choice([f"/{word()}*", f"*{word()}", f"/{{*}}/{word()}/{{**}}"]) for _ in range(2)]
    operation = {"paths": paths, "hosts": [f"{word()}*"], "notPaths": [f"*{word()}{word()}{word()}"]}
    when = [{"key": f"request.headers[x-{chance.randrange(3)}]", "notValues": [f"*{word()}"]}]
    return {"from": [{"source": source}], "to": [{"operation": operation}], "when": when}


Policies = list[AuthorizationPolicy]


def changed(old: Policies, other: Policies, rules: int) -> Policies:
    """``old`` with so many rules taken from ``other``."""
    chance = random.Random(rules)
    new = list(old)
    for number in chance.sample(range(len(new)), min(rules, len(new))):
        mine = list(new[number].rules)
        mine[chance.randrange(len(mine))] = chance.choice(other[number].rules)
        new[number] = dataclasses.replace(new[number], rules=tuple(mine))
    return new


def cases(count: int) -> Suite:
    chance = random.Random(2)
    lines = []
    for number in range(count):
        to = f"n{chance.randrange(5)}/w{chance.randrange(20)}"
        who = f"n{chance.randrange(40)}/s{chance.randrange(60)}"
        what = f"request: GET /v1/a{chance.randrange(50)}/x, headers: {{x-team: t1}}, expect: deny"
        lines.append(f"- {{name: case {number}, to: {to}, from: {who}, {what}}}\n")
    text = "suite: s\ncases:\n" + "".join(lines)
    return read_suites(text, "a.test.yaml", Problems(), trust_domain=DOMAIN, default="deny")[0]


def flows(count: int, *, to: str = "", callers: int = 2400) -> list[Flow]:
    chance = random.Random(3)
    who = [caller(chance) for _ in range(callers)]
    found = []
    for number in range(count):
        workload = to or f"n{chance.randrange(5)}/w{chance.randrange(20)}"
        item = chance.randrange(50)
        path = chance.choice([f"/v1/a{item}/{chance.randrange(3000)}", f"/v1/b{item}"])
        method, when = chance.choice(METHODS), 1e9 + number
        some = Flow(workload, chance.choice(who), "http", method, "api", path, port=8080, first=when, last=when)
        found.append(dataclasses.replace(some, trace_id=f"{number:032x}", count=chance.randrange(1, 50)))
    return found


def timed(name: str, work: Callable[[], str]) -> None:
    start = time.perf_counter()
    told = work()
    print(f"{name:<58}{time.perf_counter() - start:7.2f} s   {told}", flush=True)


def told(found: Diff) -> str:
    text = f"{len(found.allowed)} classes newly allowed, {len(found.denied)} newly denied"
    return f"{text}; gave up: {found.unknown}" if found.unknown else text


def main(rules: int = 500, number: int = 1000, records: int = 100_000) -> None:
    old, other = documents(1, rules, usual), documents(2, rules, usual)
    suite, seen = cases(number), flows(records)
    mine = flows(records, to="n0/w0", callers=20)
    timed(f"test: read {number} cases", lambda: f"{len(cases(number).cases)} cases")
    timed(f"test: {number} cases, {rules} rules", lambda: f"{len(run(old, suite))} judged")
    timed("test --coverage", lambda: f"{sum(rule.cases > 0 for rule in coverage(old, [suite]))} rules touched")
    good = dataclasses.replace(suite, cases=tuple(r.case for r in run(old, suite) if not r.wrong))
    timed("test --mutate", lambda: f"{mutate(old, [good]).tried} mutants")
    timed(f"check: {rules} rules", lambda: f"{len(lint(old))} findings")
    timed(f"diff: {rules} rules, 10 of them changed", lambda: told(diff(old, changed(old, other, 10))))
    timed(f"diff: {rules} rules, all of them others", lambda: told(diff(old, other)))
    worst = documents(1, rules, hard), documents(2, rules, hard)
    timed(f"diff: {rules} rules, all of them others, hard", lambda: told(diff(*worst)))
    timed(f"replay: {records} flows, {rules} and {rules} rules", lambda: f"{replay(seen, old, other).calls} calls")
    timed(f"learn: {records} flows to one workload", lambda: f"{len(learn(mine, to='n0/w0').policy.rules)} rules")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", type=int, default=500)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--flows", type=int, default=100_000)
    chosen = parser.parse_args()
    main(chosen.rules, chosen.cases, chosen.flows)
