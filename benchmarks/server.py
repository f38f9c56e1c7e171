"""Private runner of a mediator (until twistd's is there): PORT [--no-status]."""

from __future__ import annotations
import os, sys, time


def main() -> None:
    from twisted.internet import epollreactor

    epollreactor.install()
    from twisted.internet import reactor

    reactor.seconds = time.monotonic
    from broker.mediator.dial import Dialer
    from broker.mediator.server import Mediator
    from broker.resolver.local import LocalResolver
    from broker.store.memory import MemoryStore
    from broker.wire.stream import Exchange, StreamFactory
    from twisted.internet.defer import Deferred
    from twisted.internet.task import LoopingCall

    port = int(sys.argv[1])
    store = MemoryStore(os.urandom)
    exchange = Exchange(reactor, login_timeout=120)
    resolver = LocalResolver(reactor)

    def start(state):
        m = Mediator(
            exchange,
            store,
            state,
            resolver,
            Dialer(reactor),
            os.urandom,
            status="--no-status" not in sys.argv,
            own_ports=(port,),
        )
        resolver.start()
        reactor.listenTCP(port, StreamFactory(exchange, m.peer), interface="127.0.0.1")

    Deferred.fromCoroutine(store.load()).addCallback(start).addErrback(lambda f: f.printTraceback())
    import gc

    if os.environ.get("BENCH_GC") == "off":
        gc.disable()
    elif os.environ.get("BENCH_GC") == "high":
        gc.set_threshold(20000, 20, 20)
    reactor.run()


main()
