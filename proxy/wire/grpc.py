# PROTO
def parse_grpc_timeout(v): return None
