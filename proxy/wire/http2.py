# PROTO
from __future__ import annotations
import ngh2
from proxy.wire.events import *
from proxy.wire.validate import check_h2_request, check_response
class _B:
    version=20; must_close=False; mid_head=False; now=0.0; half_close=False; wants_read=True
    def take(self): return self.c.data_to_send()
    def acknowledge(self,s,n): self.c.acknowledge_received_data(n,s)
    def queued(self,s): return self.c.queued_body_size(s) if s in self.open else 0
    def send_data(self,s,d,end):
        self.c.send_data(s,d,end_stream=end)
    def send_trailers(self,s,h): self.c.send_trailers(s,h)
    def reset(self,s,code=8): self.c.reset_stream(s,code)
    def shut_down(self): pass
    def finish(self): pass
    def fail(self,c,r): pass
    def ping(self): pass
    def receive_eof(self): return []
    def resume(self): return []
    def release(self,s): pass
    @property
    def open_streams(self): return len(self.open)
    @property
    def is_idle(self): return not self.open
    def receive(self,data):
        self.c.receive_data(data)
        out=[]
        T=self.T
        for e in self.c.events():
            f=T.get(type(e))
            if f: f(self,e,out)
        return out
    def _data(self,e,out): out.append(DataReceived(e.stream_id,e.data,e.end_stream))
    def _trailers(self,e,out): out.append(TrailersReceived(e.stream_id,list(e.headers)))
    def _reset(self,e,out): out.append(StreamReset(e.stream_id,e.error_code))
    def _closed(self,e,out): self.open.discard(e.stream_id)
    def _win(self,e,out): out.append(StreamDrained(e.stream_id))
class NgServer(_B):
    def __init__(self,limits):
        self.limits=limits; self.open=set(); self.c=ngh2.Connection(ngh2.Role.SERVER,ngh2.Configuration(auto_window_update=False))
    def start(self): self.c.initiate_connection({3:100,4:65536}); self.c.set_local_window_size(1<<20)
    def _req(self,e,out):
        h=check_h2_request(e.headers,self.limits)
        self.open.add(e.stream_id)
        out.append(RequestReceived(e.stream_id,h,e.end_stream))
    def send_response(self,s,status,headers,*,length,end_stream):
        h=[(b":status",b"%d"%status)]+headers
        if length is not None: h.append((b"content-length",b"%d"%length))
        self.c.send_response(s,h,end_stream=end_stream)
    def send_informational(self,*a): pass
NgServer.T={ngh2.RequestReceived:NgServer._req,ngh2.DataReceived:_B._data,ngh2.TrailersReceived:_B._trailers,ngh2.StreamReset:_B._reset,ngh2.StreamClosed:_B._closed,ngh2.WindowUpdated:_B._win}
class NgClient(_B):
    def __init__(self,limits):
        self.limits=limits; self.open=set(); self.c=ngh2.Connection(ngh2.Role.CLIENT,ngh2.Configuration(auto_window_update=False))
    def start(self): self.c.initiate_connection({4:65536,2:0}); self.c.set_local_window_size(1<<20)
    @property
    def can_open(self): return self.c.can_send_request and len(self.open)<100
    def open_stream(self,head,headers,*,end_stream):
        h=[(b":method",head.method),(b":scheme",b"http"),(b":authority",head.authority),(b":path",head.target)]+headers
        if head.length: h.append((b"content-length",b"%d"%head.length))
        if head.te_trailers: h.append((b"te",b"trailers"))
        s=self.c.send_request(h,end_stream=end_stream); self.open.add(s); return s
    def _resp(self,e,out):
        h=e.headers
        r=check_response(int(h[0][1]),h[1:],version=20,request_method=b"",limits=self.limits)
        out.append(ResponseReceived(e.stream_id,r,e.end_stream))
NgClient.T={ngh2.ResponseReceived:NgClient._resp,ngh2.DataReceived:_B._data,ngh2.TrailersReceived:_B._trailers,ngh2.StreamReset:_B._reset,ngh2.StreamClosed:_B._closed,ngh2.WindowUpdated:_B._win}
def server_engine(n): return NgServer
def client_engine(n): return NgClient
