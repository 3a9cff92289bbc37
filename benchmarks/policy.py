"""What a decision costs with ten and with ten thousand policies, and what a swap of five thousand costs and blocks.

    python -m benchmarks.policy

CPU seconds of this process; each figure is the median of several rounds. Warm: requests repeat, and
``DecisionCache`` answers. Cold: it has never seen them. Where policies ask for a header nothing is remembered, and
``authorize`` is asked with all facts. ``decide`` is the evaluation alone. The swap compiles in a thread, as a reload
does (proxy/app.py), while a loop counts how long it is kept from running.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import trio

from config.resources.authorization import Action, AuthorizationPolicy, Clause, Condition, Entry, Rule
from proxy.errors import AccessDenied
from proxy.policy.engine import (
    AccessRequest,
    CompiledPolicies,
    DecisionCache,
    WorkloadFacts,
    authorize,
    compile_policies,
    decide,
)

API = WorkloadFacts("shop", {"app": "api"}, name="api")
REQUESTS = 2000
ROUNDS = 7


def policies(count: int) -> list[AuthorizationPolicy]:
    """As a mesh has them: callers by principal or namespace, methods, and paths of their own; one in ten denies."""
    return [one_policy(number) for number in range(count)]


def one_policy(number: int) -> AuthorizationPolicy:
    who = Clause("principals", (f"td/ns/team-{number % 500}/sa/app-{number}",))
    if number % 7 == 3:
        who = Clause("namespaces", (f"team-{number % 500}",))
    elif number % 7 == 5:
        who = Clause("serviceAccounts", (f"team-{number % 500}/app-{number}",))
    paths = (f"/v1/things-{number}", f"/v1/things-{number}/*")
    if number % 5 == 2:
        paths = (f"/v1/things-{number}/{{*}}/parts/{{**}}",)
    rule = Rule((Entry((who,)),), (Entry((Clause("methods", ("GET", "POST")), Clause("paths", paths))),))
    action = Action.DENY if number % 10 == 9 else Action.ALLOW
    return AuthorizationPolicy(f"p-{number:05}", "shop", action, (), (rule,))


def with_condition(number: int) -> AuthorizationPolicy:
    """The same, with a header: nothing of it is cached."""
    policy = one_policy(number)
    rule = policy.rules[0]
    condition = Condition("request.headers[x-tenant]", (f"tenant-{number % 50}",))
    return AuthorizationPolicy(
        policy.name, policy.namespace, policy.action, (), (Rule(rule.sources, rule.operations, (condition,)),)
    )


def requests(count: int, of: int) -> list[AccessRequest]:
    """Half of them match a rule, of one of the first ten policies; the rest are about nobody's things."""
    found = []
    for number in range(count):
        which = number % 10 if number % 2 else number % of
        path = f"/v1/things-{which}/{number}" if number % 2 else f"/other/{number}"
        principal, namespace = f"td/ns/team-{which % 500}/sa/app-{which}", f"team-{which % 500}"
        found.append(
            AccessRequest(
                principal=principal,
                namespace=namespace,
                port=8080,
                method="GET",
                host="api.shop",
                path=path,
                headers={"x-tenant": f"tenant-{which % 50}"},
            )
        )
    return found


def cpu(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median CPU seconds."""
    times = []
    for _ in range(rounds):
        begun = time.process_time()
        run()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def pure(compiled: CompiledPolicies, asked: list[AccessRequest]) -> float:
    return cpu(lambda: [decide(compiled, request) for request in asked]) / len(asked)


def ask(cache: DecisionCache, principal: str, namespace: str, method: bytes, host: bytes, path: bytes) -> None:
    try:
        cache.authorize(
            principal=principal, namespace=namespace, port=8080, method=method, host=host, path=path, route="in"
        )
    except AccessDenied:
        pass


def lines_of(asked: list[AccessRequest]) -> list[tuple[str, str, bytes, bytes, bytes]]:
    return [(r.principal or "", r.namespace or "", b"GET", r.host.encode(), r.path.encode()) for r in asked]


def cold(compiled: CompiledPolicies, asked: list[AccessRequest]) -> float:
    lines = lines_of(asked)

    def run() -> None:
        cache = DecisionCache(compiled)
        for line in lines:
            ask(cache, *line)

    return cpu(run) / len(asked)


def warm(compiled: CompiledPolicies, asked: list[AccessRequest]) -> float:
    lines, cache = lines_of(asked), DecisionCache(compiled)

    def run() -> None:
        for line in lines:
            ask(cache, *line)

    run()
    return cpu(run) / len(asked)


def uncached(compiled: CompiledPolicies, asked: list[AccessRequest]) -> float:
    lines = [(*line, r.headers) for line, r in zip(lines_of(asked), asked, strict=True)]

    def run() -> None:
        for principal, namespace, method, host, path, headers in lines:
            try:
                authorize(
                    compiled,
                    AccessRequest(
                        principal=principal,
                        namespace=namespace,
                        port=8080,
                        method=method.decode("latin-1"),
                        host=host.decode("latin-1"),
                        path=path.decode("latin-1"),
                        headers=headers,
                    ),
                )
            except AccessDenied:
                pass

    return cpu(run) / len(asked)


def compare(make: Callable[[int], AuthorizationPolicy], few: int, many: int, caches: bool) -> None:
    asked = requests(REQUESTS, few)
    small = compile_policies([make(number) for number in range(few)], API)
    large = compile_policies([make(number) for number in range(many)], API)
    measures = [("warm", warm), ("cold", cold)] if caches else [("uncached", uncached)]
    measures.append(("decide", pure))
    for name, measure in measures:
        one, other = measure(small, asked), measure(large, asked)
        print(
            f"{make.__name__:<15} {name:<9}{few:>6} policies {one * 1e6:7.2f} us  "
            f"{many:>6} policies {other * 1e6:7.2f} us  ratio {other / one:.2f}"
        )


def compile_unfrozen(documents: list[AuthorizationPolicy]) -> CompiledPolicies:
    return compile_policies(documents, API)


def compile_frozen(documents: list[AuthorizationPolicy]) -> CompiledPolicies:
    """The collector is held off meanwhile, and never looks at the result."""
    gc.disable()
    try:
        compiled = compile_policies(documents, API)
        gc.freeze()
        return compiled
    finally:
        gc.enable()


async def swap(count: int, rounds: int, compile: Callable[[list[AuthorizationPolicy]], CompiledPolicies]) -> None:
    """Compile ``count`` policies in a thread and let the ones before go; a loop measures the longest time in which it
    could not run."""
    longest, done, kept = 0.0, False, None
    took, blocked = [], []

    async def look() -> None:
        nonlocal longest
        while not done:
            before = time.perf_counter()
            await trio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before - 0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        for _ in range(rounds):
            documents = policies(count)
            await trio.sleep(0.05)
            longest = 0.0
            begun = time.perf_counter()
            compiled = await trio.to_thread.run_sync(compile, documents)
            took.append(time.perf_counter() - begun)
            kept, compiled = compiled, None
            await trio.sleep(0.02)
            blocked.append(longest)
        done = True
    assert kept is not None
    kept_for = f"{statistics.median(blocked) * 1e3:.1f} ms (median of {rounds}), {max(blocked) * 1e3:.1f} at most"
    print(
        f"{compile.__name__:<17} swap of {len(kept)} policies: {statistics.median(took) * 1e3:.0f} ms, "
        f"the loop was kept for {kept_for}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--swap", type=int, default=5000)
    options = parser.parse_args()
    compare(one_policy, options.few, options.many, True)
    compare(with_condition, options.few, options.many, False)
    for compile in (compile_unfrozen, compile_frozen):
        trio.run(swap, options.swap, 9, compile)


if __name__ == "__main__":
    main()
