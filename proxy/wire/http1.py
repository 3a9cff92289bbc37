# PROTO
from __future__ import annotations
import httptools
from http import HTTPStatus
from proxy.wire.events import *
from proxy.wire.validate import check_request, check_response
_LINES={s:b"HTTP/1.1 %d x\r\n"%s for s in range(100,600)}
class _Base:
    version=11
    def __init__(self):
        self.now=0.0; self.buf=b""; self.out=[]; self.must_close=False; self.sid=0; self.left=0; self.active=False; self.mid_head=False; self.half_close=False; self.outsize=0
    def start(self): pass
    def take(self):
        d=b"".join(self.out); self.out.clear(); self.outsize=0; return d
    def acknowledge(self,s,n): pass
    def queued(self,s): return self.outsize
    def put(self,d): self.out.append(d); self.outsize+=len(d)
    def shut_down(self): self.closing=True
    def finish(self): pass
    def fail(self,c,r): self.must_close=True
    def ping(self): pass
    def reset(self,s,code=8): self.must_close=True
    closing=False
    @property
    def open_streams(self): return int(self.active)
    @property
    def is_idle(self): return not self.active
class Http1Server(_Base):
    def __init__(self,limits,*,scheme=b"http"):
        super().__init__(); self.limits=limits; self.scheme=scheme; self.parser=None; self.wants_read=True; self.reqdone=True; self.respdone=True
    def on_url(self,u): self.url=u
    def on_header(self,n,v): self.h.append((n.lower(),v))
    def on_headers_complete(self): pass
    def on_message_complete(self): pass
    def receive(self,data):
        if self.buf: data=self.buf+data; self.buf=b""
        ev=[]
        self.feed(data,ev); return ev
    def receive_eof(self): return []
    def resume(self):
        if self.buf and not self.active:
            d,self.buf=self.buf,b""; ev=[]; self.feed(d,ev); return ev
        return []
    def feed(self,data,ev):
        if not self.reqdone:
            n=min(self.left,len(data)); self.left-=n
            self.reqdone=self.left==0
            ev.append(DataReceived(self.sid,data[:n],self.reqdone))
            data=data[n:]
            if not data: return
        if self.active: self.buf=data; return
        e=data.find(b"\r\n\r\n")
        if e<0: self.buf=data; return
        if self.parser is None: self.parser=httptools.HttpRequestParser(self)
        self.h=[]
        self.parser.feed_data(data if e+4==len(data) else data[:e+4])
        m=self.parser.get_method()
        self.sid+=1; self.active=True
        head=check_request(m,self.scheme,b"",self.url,self.h,version=11,limits=self.limits)
        self.head=head
        rest=data[e+4:] if e+4<len(data) else b""
        if head.length: self.parser=None; self.left=head.length; self.reqdone=False
        ev.append(RequestReceived(self.sid,head,not head.length))
        if rest: self.feed(rest,ev)
    def send_informational(self,*a): pass
    def send_response(self,sid,status,headers,*,length,end_stream):
        p=[_LINES[status]]
        for n,v in headers: p.append(n+b": "+v+b"\r\n")
        self.chunk=False
        if length is not None or end_stream: p.append(b"content-length: %d\r\n"%(length or 0))
        else: p.append(b"transfer-encoding: chunked\r\n"); self.chunk=True
        if self.closing or not self.head.keep_alive: p.append(b"connection: close\r\n"); self.closing=True
        p.append(b"\r\n")
        self.put(b"".join(p))
        if end_stream: self.end()
    def send_data(self,sid,data,end):
        if self.chunk:
            if data: self.put(b"%x\r\n"%len(data)); self.put(data); self.put(b"\r\n")
            if end: self.put(b"0\r\n\r\n")
        else: self.put(data)
        if end: self.end()
    def send_trailers(self,sid,h): self.put(b"0\r\n\r\n"); self.end()
    def end(self):
        self.active=False
        if self.closing or not self.reqdone: self.must_close=True
class Http1Client(_Base):
    def __init__(self,limits): super().__init__(); self.limits=limits; self.parser=None; self.reusable=True; self.respdone=True
    def on_status(self,s): pass
    def on_header(self,n,v): self.h.append((n.lower(),v))
    def on_headers_complete(self): pass
    def on_message_complete(self): pass
    @property
    def can_open(self): return not self.active and self.reusable and not self.must_close
    def open_stream(self,head,headers,*,end_stream):
        self.sid+=1; self.active=True; self.respdone=False; self.inhead=True
        p=[head.method+b" "+head.target+b" HTTP/1.1\r\nhost: "+head.authority+b"\r\n"]
        for n,v in headers: p.append(n+b": "+v+b"\r\n")
        self.chunk=False
        if head.length: p.append(b"content-length: %d\r\n"%head.length)
        elif not end_stream: p.append(b"transfer-encoding: chunked\r\n"); self.chunk=True
        p.append(b"\r\n"); self.put(b"".join(p)); self.head=head
        return self.sid
    send_data=Http1Server.send_data
    send_trailers=Http1Server.send_trailers
    def end(self): pass
    def receive_eof(self): return []
    def receive(self,data):
        if self.buf: data=self.buf+data; self.buf=b""
        ev=[]
        if self.respdone: self.must_close=True; return ev
        if not self.inhead: self.body(data,ev); return ev
        e=data.find(b"\r\n\r\n")
        if e<0: self.buf=data; return ev
        if self.parser is None: self.parser=httptools.HttpResponseParser(self)
        self.h=[]
        self.parser.feed_data(data if e+4==len(data) else data[:e+4])
        st=self.parser.get_status_code()
        head=check_response(st,self.h,version=11,request_method=self.head.method,limits=self.limits)
        self.left=head.length or 0; self.inhead=False
        if self.left: self.parser=None
        else: self.done()
        rest=data[e+4:]
        ev.append(ResponseReceived(self.sid,head,not self.left))
        if rest: self.body(rest,ev)
        return ev
    def body(self,data,ev):
        self.left-=len(data)
        if self.left==0: self.done()
        ev.append(DataReceived(self.sid,data,self.left==0))
    def done(self): self.active=False; self.respdone=True
