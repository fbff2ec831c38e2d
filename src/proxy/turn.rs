//! An exchange's turn at the gate: its place, its patience, and what it asks for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::request;

use crate::{
    clock,
    control::{
        cost::Demand,
        gate::PauseReason,
        queue::{FlowId, Place},
    },
    fault::Fault,
    gate::{Gate, Permit, Refusal},
};

use super::{head, request_body::RequestBody};

/// An exchange's place at the gate.
pub(super) struct Turn {
    pub(super) gate: Arc<Gate>,
    flow: FlowId,
    /// Kept through all attempts.
    place: Option<Place>,
    demand: Demand,
    deadline: Instant,
    wait: Duration,
}

impl Turn {
    /// One that has not been asked for yet. `wait`: the time from its arrival to `deadline`.
    pub(super) fn new(gate: Arc<Gate>, flow: FlowId, demand: Demand, deadline: Instant, wait: Duration) -> Self {
        Self { gate, flow, place: None, demand, deadline, wait }
    }

    /// The right to send one attempt, as soon as it may.
    pub(super) async fn permit(&mut self, head: &mut request::Parts, body: &mut RequestBody) -> Result<Permit, Fault> {
        quota(self.gate.quota_spent(&self.demand))?;
        let admitted = match self.place {
            Some(place) => self.waited(place, true).await?,
            None => {
                let place = *self.place.insert(self.gate.arrive());
                match self.gate.try_admit(&self.demand) {
                    Some(permit) => Ok(permit),
                    None => {
                        head::compact(head);
                        body.compact();
                        self.waited(place, false).await?
                    }
                }
            }
        };
        let permit = admitted.map_err(|refusal| self.fault(refusal))?;
        // Meanwhile a quota may have been found spent.
        if let Err(fault) = quota(self.gate.quota_blocks(&self.demand)) {
            permit.unused();
            return Err(fault);
        }
        Ok(permit)
    }

    /// Waits in the queue, unless the quota turns out to be spent meanwhile.
    async fn waited(&self, place: Place, again: bool) -> Result<Result<Permit, Refusal>, Fault> {
        let slot = async {
            match again {
                true => self.gate.readmit(self.flow, place, self.demand, self.deadline).await,
                false => self.gate.admit(self.flow, place, self.demand, self.deadline).await,
            }
        };
        // First in line, so that it is listening before anybody can be refused on our behalf.
        tokio::select! {
            biased;
            left = self.gate.quota_runs_out(&self.demand) => Err(Fault::Quota { retry_after: left }),
            admitted = slot => Ok(admitted),
        }
    }

    /// Time until it must have its answer.
    pub(super) fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(clock::now())
    }

    fn fault(&self, refusal: Refusal) -> Fault {
        match refusal {
            Refusal::Full { depth_max, retry_after } => Fault::QueueFull { depth_max, retry_after },
            Refusal::Hopeless { retry_after, reason } => Fault::CannotWait {
                retry_after,
                why: match reason {
                    PauseReason::Exhausted => "budget exhausted",
                    PauseReason::Refused => "everything is refused",
                    PauseReason::RetryAfter => "Retry-After",
                },
            },
            Refusal::TooLate { retry_after } => Fault::QueueTimeout { waited: self.wait, retry_after },
        }
    }
}

fn quota(blocked_for: Option<Duration>) -> Result<(), Fault> {
    blocked_for.map_or(Ok(()), |retry_after| Err(Fault::Quota { retry_after }))
}
