# PROTO
from __future__ import annotations
from proxy.errors import MalformedRequest
from proxy.wire.events import Headers, RequestHead, ResponseHead
IDENTITY_HEADERS = frozenset({b"x-forwarded-client-cert"})
_HOP={b"connection",b"keep-alive",b"proxy-connection",b"te",b"transfer-encoding",b"upgrade",b"host",b"content-length",b"expect",b"x-forwarded-client-cert"}
def check_request(method, scheme, authority, target, fields, *, version, limits):
    headers=[]; length=None; grpc=False; ka=version!=10; te=False; exp=False; chunked=False
    for f in fields:
        n,v=f
        if n in _HOP:
            if n==b"host": authority=v
            elif n==b"content-length": length=int(v)
            elif n==b"transfer-encoding": chunked=True
            elif n==b"connection": ka = v.lower()!=b"close"
            elif n==b"te": te=True
            elif n==b"expect": exp=True
            continue
        if n==b"content-type" and v.startswith(b"application/grpc"): grpc=True
        headers.append(f)
    path=target.partition(b"?")[0]
    if length is None and version!=20 and not chunked: length=0
    return RequestHead(method=method,scheme=scheme,authority=authority,host=authority.lower().partition(b":")[0],path=path,target=target,headers=headers,version=version,length=length,keep_alive=ka,is_grpc=grpc,te_trailers=te,expects_continue=exp)
def check_h2_request(fields, limits):
    ps={}; rest=[]
    for f in fields:
        if f[0][:1]==b":": ps[f[0]]=f[1]
        else: rest.append(f)
    return check_request(ps[b":method"],ps[b":scheme"],ps.get(b":authority",b""),ps[b":path"],rest,version=20,limits=limits)
def check_response(status, fields, *, version, request_method, limits):
    headers=[]; length=None
    for f in fields:
        if f[0] in _HOP:
            if f[0]==b"content-length": length=int(f[1])
            continue
        headers.append(f)
    return ResponseHead(status,headers,length=length)
