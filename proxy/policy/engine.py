# PROTO
from __future__ import annotations
class Permit:
    __slots__=("decision",)
    def __init__(self,d): self.decision=d
class Decision:
    allowed=True; policy="bench/allow"; rule=0; reason=""; nearest=None; audited=False
    def id(self,f): return "X"
class AccessRequest:
    def __init__(self,**k): self.__dict__.update(k)
class CompiledPolicies: pass
_D=Decision()
class DecisionCache:
    def __init__(self,p): self.c={}
    def authorize(self,*,principal,namespace,port,method,host,path):
        k=(principal,method,host,path)
        p=self.c.get(k)
        if p is None:
            p=self.c[k]=Permit(_D)
        return p
def authorize(p,r): return Permit(_D)
def permit_configured(n): return Permit(_D)
