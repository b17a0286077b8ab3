import time, statistics, subprocess, os
from tests.e2e.service_lab import HELLO, Service
SH = '#!cmd alpine\n#!/bin/sh\neval "$1"\n'
def cpu(s):
    f=open(f"/proc/{s.process.pid}/stat").read().split(); return (int(f[13])+int(f[14]))/100
def test_speed(settings, tmp_path):
    ss={}
    for n,p in (("new","/work/main"),("old","/tmp/headcopy")):
        (tmp_path/n).mkdir(); s=Service(tmp_path/n, {**settings,"PYTHONPATH":p}); s.add_user("alice"); s.start(); ss[n]=s
        s.create("sh",SH).ok(); s.create("hello",HELLO).ok()
    try:
        ts={"new":[],"old":[]}
        for _ in range(150):
            for n,s in ss.items():
                t=time.perf_counter(); s.ssh("hello").ok(); ts[n].append(time.perf_counter()-t)
        for n,t in ts.items():
            t.sort(); print("fresh",n,"ms min",round(t[0]*1000,1),"p25",round(t[37]*1000,1),"p50", round(t[75]*1000,1), "p90", round(t[135]*1000,1))
        to={"new":[],"old":[]};c={"new":0,"old":0}
        for _ in range(0):
            for n,s in ss.items():
                k=cpu(s);t=time.perf_counter()
                subprocess.run([*s.command_line(), "sh 'exec head -c 268435456 /dev/zero'"], stdout=subprocess.DEVNULL, check=True)
                to[n].append(round(time.perf_counter()-t,2)); c[n]+=cpu(s)-k
        print("out",{n:sorted(t) for n,t in to.items()},"cpu",{n:round(x,2) for n,x in c.items()})
    finally:
        for s in ss.values(): s.stop()
