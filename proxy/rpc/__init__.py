"""gRPC over our own HTTP/2 engines: a server for ``identity.rpc`` methods and a client, on Unix sockets and mTLS."""
