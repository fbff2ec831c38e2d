//! An exchange's turn at the gate: its place, its patience, and what it asks for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Uri, request};

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

/// How an attempt starts.
pub(super) enum Start {
    Leaves(Permit),
    Waits(Place),
}

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

    /// The right to send the first attempt, if it may leave now. Others have a place, to wait at in
    /// [`permit`](Self::permit).
    pub(super) fn at_once(&mut self) -> Result<Start, Fault> {
        quota(self.gate.quota_spent(&self.demand))?;
        if let Some(place) = self.place {
            return Ok(Start::Waits(place));
        }
        let (place, permit) = self.gate.enter(&self.demand);
        self.place = Some(place);
        permit.map_or(Ok(Start::Waits(place)), |permit| self.unless_spent(permit).map(Start::Leaves))
    }

    /// The right to send one attempt, as soon as it may, for one that waits. `again`: it has had one before.
    pub(super) async fn permit(
        &self,
        head: &mut request::Parts,
        target: &mut Uri,
        body: &mut RequestBody,
        place: Place,
        again: bool,
    ) -> Result<Permit, Fault> {
        if !again {
            head::compact(head, target);
            body.compact();
        }
        let permit = self.waited(place, again).await?.map_err(|refusal| self.fault(refusal))?;
        self.unless_spent(permit)
    }

    /// Meanwhile a quota may have been found spent.
    fn unless_spent(&self, permit: Permit) -> Result<Permit, Fault> {
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
