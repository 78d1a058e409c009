import sys, time, math, os, json
from pathlib import Path
import torch, torch.nn.functional as F
from diffusers import AutoencoderKL
from app.training.emoji import read_emoji, load_rgba
torch.set_num_threads(2)
OUT=Path('/work/train'); cache=OUT/'rgba.pt'
SIZES=(48,56,64,88,112)
if cache.exists(): banks,names=torch.load(cache)
else:
    t=time.time()
    em=[e for e in read_emoji(Path('/work/npm')) if not e.category.startswith('People')]
    names=[e.name for e in em]
    banks={s:torch.empty(len(em),4,s,s,dtype=torch.uint8) for s in SIZES}
    import numpy as np
    from PIL import Image
    def one(i):
        for s in SIZES: banks[s][i]=load_rgba(em[i].path,s)
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(2) as ex: list(ex.map(one,range(len(em))))
    torch.save((banks,names),cache); print('bank',len(em),time.time()-t,flush=True)
N=len(names)
held=[i for i in range(N) if i%25==7]; train=[i for i in range(N) if i%25!=7]
COL=torch.tensor([[230,57,60],[242,140,40],[250,205,60],[70,170,90],[60,130,220],[140,90,200],[245,150,190],[140,95,60],[30,30,34],[245,245,245],[140,145,150],[60,185,190]])/255
def picture(g,pool,full=True):
    s=SIZES[int(torch.randint(len(SIZES),(1,),generator=g))]
    i=pool[int(torch.randint(len(pool),(1,),generator=g))]
    p=banks[s][i].float()/255
    if torch.rand(1,generator=g)<.5: p=p.flip(-1)
    c=COL[int(torch.randint(12,(1,),generator=g))] if torch.rand(1,generator=g)<.6 else torch.rand(3,generator=g)
    m=(128-s)//8
    x=8*int(torch.randint(m+1,(1,),generator=g)); y=8*int(torch.randint(m+1,(1,),generator=g))
    if torch.rand(1,generator=g)<.3: # any alignment
        x=int(torch.randint(128-s+1,(1,),generator=g)); y=int(torch.randint(128-s+1,(1,),generator=g))
    im=c.view(3,1,1).expand(3,128,128).clone()
    im[:,y:y+s,x:x+s]=p[:3]+(1-p[3:])*im[:,y:y+s,x:x+s]
    return im*2-1,(x+s//2,y+s//2)
def batch(g,n,crop):
    out=[]
    for _ in range(n):
        im,(cx,cy)=picture(g,train)
        if crop<128:
            x=int(torch.randint(max(0,cx-56),min(64,max(cx-8,0))+1,(1,),generator=g)); y=int(torch.randint(max(0,cy-56),min(64,max(cy-8,0))+1,(1,),generator=g))
            im=im[:,y:y+crop,x:x+crop]
        out.append(im)
    return torch.stack(out).contiguous(memory_format=torch.channels_last)
gh=torch.Generator().manual_seed(99)
val=torch.stack([picture(gh,held)[0] for _ in range(48)])
def psnr(m):
    m.eval(); 
    with torch.no_grad(), torch.autocast('cpu',torch.bfloat16):
        r=m.decode(m.encode(val).latent_dist.mode()).sample.float().clamp(-1,1)
    m.train(); mse=((r-val)/2).square().mean((1,2,3)); return float((-10*mse.log10()).mean()), -10*math.log10(float(mse.mean()))
def build():
    torch.manual_seed(0)
    return AutoencoderKL(in_channels=3,out_channels=3,down_block_types=['DownEncoderBlock2D']*4,up_block_types=['UpDecoderBlock2D']*4,block_out_channels=CH,layers_per_block=1,latent_channels=12,norm_num_groups=8,mid_block_add_attention=False,sample_size=128,use_quant_conv=True,use_post_quant_conv=True).to(memory_format=torch.channels_last)
CH=(16,32,64,128)
def grads(a): return a[...,1:]-a[...,:-1], a[...,1:,:]-a[...,:-1,:]
class Muon2(torch.optim.Optimizer):
    def __init__(self,params,lr,momentum=.95,wd=0.): super().__init__(list(params),dict(lr=lr,momentum=momentum,wd=wd))
    @torch.no_grad()
    def step(self):
        for gr in self.param_groups:
            for p in gr['params']:
                if p.grad is None: continue
                st=self.state[p]
                if 'm' not in st: st['m']=torch.zeros_like(p)
                m=st['m']; m.lerp_(p.grad,1-gr['momentum'])
                u=p.grad.lerp(m,gr['momentum']).reshape(p.shape[0],-1)
                u=newton(u)
                p.mul_(1-gr['lr']*gr['wd']); p.add_(u.view(p.shape),alpha=-gr['lr']*max(1,u.shape[0]/u.shape[1])**.5)
def newton(G,steps=5):
    X=G.bfloat16(); tr=X.shape[0]>X.shape[1]
    if tr: X=X.T
    X=X/(X.norm()+1e-7)
    for _ in range(steps):
        A=X@X.T; B=-4.7750*A+2.0315*(A@A); X=3.4445*X+B@X
    if tr: X=X.T
    return X.float()
def main(opt_kind,minutes,tag,lr,bs,crop,muonlr=.02,comp=0):
    m=build(); 
    mats=[p for n,p in m.named_parameters() if p.ndim==4 and 'conv_in' not in n and 'conv_out' not in n and 'quant' not in n] if opt_kind=='muon' else []
    ids={id(p) for p in mats}; rest=[p for p in m.parameters() if id(p) not in ids]
    opts=[torch.optim.AdamW(rest,lr=lr,betas=(.9,.99),weight_decay=0,fused=True)]
    if mats: opts.append(Muon2(mats,muonlr))
    base=[[g['lr'] for g in o.param_groups] for o in opts]
    g=torch.Generator().manual_seed(1)
    enc=m
    t0=time.time(); step=0; dt=0; tb=0; log=[]
    ema=None
    fw=lambda x:m(x,sample_posterior=True,return_dict=False)[0]
    while True:
        el=(time.time()-t0)/60/minutes
        if el>=1: break
        for o,bl in zip(opts,base):
            for gr,b in zip(o.param_groups,bl): gr['lr']=b*min(1,(step+1)/100)*(1 if el<.3 else max(.01,(1-el)/.7))
        c=crop if el<.75 else 128; n=bs*(crop*crop)//(c*c)
        a=time.time(); x=batch(g,n,c); tb+=time.time()-a
        with torch.autocast('cpu',torch.bfloat16):
            d=m.encode(x).latent_dist
            z=d.mean+ .5*(d.logvar/2).exp()*0 + torch.randn(d.mean.shape)*(.5*d.logvar).exp()
            r=m.decode(z).sample
        r=r.float(); ga=grads(r); gb=grads(x)
        l1=(r-x).abs().mean(); gl=sum((p-q).abs().mean() for p,q in zip(ga,gb)); l2=(r-x).square().mean(); kl=d.kl().mean()/(12*(c//8)**2)
        loss=l1+gl+2*l2+1e-4*kl
        for o in opts:o.zero_grad(set_to_none=True)
        loss.backward(); torch.nn.utils.clip_grad_norm_(m.parameters(),1.)
        for o in opts:o.step()
        step+=1
        if step%100==0:
            print(f'{tag} {step} {time.time()-t0:.0f}s l1 {float(l1):.4f} g {float(gl):.4f} kl {float(kl):.3f} lr {opts[0].param_groups[0]["lr"]:.1e} tb {tb:.1f} psnr {psnr(m) if step%200==0 else ""}',flush=True)
        if step%1000==0: torch.save({'vae':m.state_dict(),'step':step},OUT/f'vae-{tag}.tmp'); os.replace(OUT/f'vae-{tag}.tmp',OUT/f'vae-{tag}.pt')
    print('final',psnr(m),step)
    torch.save({'vae':m.state_dict(),'step':step},OUT/f'vae-{tag}.pt')
if __name__=='__main__':
    k,mi,tag,lr,bs,crop,ml=sys.argv[1:8]
    main(k,float(mi),tag,float(lr),int(bs),int(crop),float(ml))
