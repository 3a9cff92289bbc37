"""The authority as a store with rules: entries, nodes, tokens, authority slots, issued serials and a journal in
one SQL database, private keys in a folder beside it. Synchronous; ``service.CaService`` is the way in."""
