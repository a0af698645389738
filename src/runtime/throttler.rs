//! The Throttler: whether this process may claim, and how much of each tenant.

use std::{collections::HashMap, time::Duration};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tracing::{info, warn};

use crate::{domain::TenantId, queue::TenantLimits};

/// Pauses after an infrastructure failure double from the first to the second of these.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What may be claimed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permit {
    /// Claim, within these limits if there are any.
    Claim(Option<TenantLimits>),
    /// A store or device was away: after this time, if the stores answer, claim within these
    /// limits to see whether it is back.
    Pause(Duration, Option<TenantLimits>),
}

/// What the Throttler understands.
pub enum ThrottlerMsg {
    /// May I claim?
    Ask(RpcReplyPort<Permit>),
    /// These jobs are in hand now, by tenant.
    Took(HashMap<TenantId, usize>),
    /// These jobs are in hand no more, by tenant.
    Gave(HashMap<TenantId, usize>),
    /// The Dispatcher starts anew, with nothing in hand.
    Reset,
    /// A store or device is away.
    Down,
    /// All parts did what was asked of them.
    Up,
}

/// The actor; its argument is the number of jobs of one tenant allowed in hand (0: any).
pub struct Throttler;

/// What is in hand, and whether all is well.
pub struct ThrottlerState {
    tenant_max: usize,
    in_hand: HashMap<TenantId, usize>,
    failures: u32,
}

impl ThrottlerState {
    fn permit(&self) -> Permit {
        if self.failures == 0 {
            return Permit::Claim(self.limits());
        }
        let doublings = (self.failures - 1).min(16);
        let pause = (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE);
        Permit::Pause(pause, self.limits())
    }

    fn limits(&self) -> Option<TenantLimits> {
        if self.tenant_max == 0 {
            return None;
        }
        let left = |in_hand: &usize| self.tenant_max.saturating_sub(*in_hand);
        let of_tenants =
            self.in_hand.iter().map(|(tenant, jobs)| (tenant.clone(), left(jobs))).collect();
        Some(TenantLimits { default: self.tenant_max, of_tenants })
    }

    fn gave(&mut self, jobs: HashMap<TenantId, usize>) {
        for (tenant, gone) in jobs {
            // A restarted Throttler did not see these jobs come.
            if let Some(in_hand) = self.in_hand.get_mut(&tenant) {
                *in_hand = in_hand.saturating_sub(gone);
                if *in_hand == 0 {
                    self.in_hand.remove(&tenant);
                }
            }
        }
    }
}

impl Actor for Throttler {
    type Msg = ThrottlerMsg;
    type State = ThrottlerState;
    type Arguments = usize;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        tenant_max: usize,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(ThrottlerState { tenant_max, in_hand: HashMap::new(), failures: 0 })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ThrottlerMsg::Ask(reply) => {
                // One who asked and is gone needs no answer.
                let _ = reply.send(state.permit());
            }
            ThrottlerMsg::Took(jobs) => {
                for (tenant, taken) in jobs {
                    *state.in_hand.entry(tenant).or_default() += taken;
                }
            }
            ThrottlerMsg::Gave(jobs) => state.gave(jobs),
            ThrottlerMsg::Reset => state.in_hand.clear(),
            ThrottlerMsg::Down => {
                if state.failures == 0 {
                    warn!("claiming pauses until all stores and devices answer");
                }
                state.failures = state.failures.saturating_add(1);
            }
            ThrottlerMsg::Up => {
                if state.failures > 0 {
                    info!("all stores and devices answer; claiming goes on");
                }
                state.failures = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(tenant_max: usize) -> ThrottlerState {
        ThrottlerState { tenant_max, in_hand: HashMap::new(), failures: 0 }
    }

    #[test]
    fn a_tenant_gets_what_is_left_of_its_share() {
        let mut state = state(10);
        let tenant = TenantId::default();
        state.in_hand.insert(tenant.clone(), 7);
        let Permit::Claim(Some(limits)) = state.permit() else { panic!("no limits") };
        assert_eq!((limits.default, limits.of_tenants[&tenant]), (10, 3));
        state.gave(HashMap::from([(tenant, 9)]));
        assert!(state.in_hand.is_empty());
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let mut state = state(0);
        assert_eq!(state.permit(), Permit::Claim(None));
        let pauses: Vec<Permit> = [1, 2, 3, 40]
            .map(|failures| {
                state.failures = failures;
                state.permit()
            })
            .into();
        let expected =
            [200, 400, 800, 5000].map(|ms| Permit::Pause(Duration::from_millis(ms), None));
        assert_eq!(pauses, expected);
    }
}
