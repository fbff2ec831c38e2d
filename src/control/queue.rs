//! The queue of one account: bounded, round robin over flows, first come first served inside a flow.
//!
//! A waiter is ordered by its [`Place`], given when its exchange first came. One that was admitted, refused by the
//! upstream and comes back keeps its place, so it stands before everybody of its flow who came later.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// The unit of fairness inside an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// When an exchange first came, as a number that only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place(pub u64);

/// A place in the queue, to leave it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    flow: FlowId,
    place: Place,
}

/// How many may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depths {
    /// Over all flows.
    pub total_max: usize,
    /// In one flow.
    pub per_flow_max: usize,
}

/// Why a newcomer may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The flow is full, others may have room.
    Flow,
    /// The whole queue is full.
    Total,
}

/// The waiters of one account. `W` is whatever the caller needs to wake one.
#[derive(Debug)]
pub struct FairQueue<W> {
    flows: HashMap<FlowId, BTreeMap<Place, W>>,
    /// Flows that have waiters, each exactly once, in the order of their turns.
    turns: VecDeque<FlowId>,
    len: usize,
    depths: Depths,
}

impl<W> FairQueue<W> {
    /// An empty queue.
    #[must_use]
    pub fn new(depths: Depths) -> Self {
        Self { flows: HashMap::new(), turns: VecDeque::new(), len: 0, depths }
    }

    /// Everybody who waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Changes the bounds. Those who wait stay.
    pub fn set_depths(&mut self, depths: Depths) {
        self.depths = depths;
    }

    /// Whether a newcomer of `flow` may wait.
    pub fn room(&self, flow: FlowId) -> Result<(), Full> {
        if self.len >= self.depths.total_max {
            return Err(Full::Total);
        }
        if self.flows.get(&flow).map_or(0, BTreeMap::len) >= self.depths.per_flow_max {
            return Err(Full::Flow);
        }
        Ok(())
    }

    /// Joins at `place`, whether there is room or not: one that comes back after a refusal was counted already and
    /// must not be lost. Newcomers are checked with [`room`](Self::room) first.
    pub fn push(&mut self, flow: FlowId, place: Place, waiter: W) -> Ticket {
        let waiters = self.flows.entry(flow).or_default();
        if waiters.is_empty() {
            self.turns.push_back(flow);
        }
        let former = waiters.insert(place, waiter);
        debug_assert!(former.is_none(), "place {} is taken", place.0);
        self.len += 1;
        Ticket { flow, place }
    }

    /// Leaves. `None`: was not waiting any more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<W> {
        let waiters = self.flows.get_mut(&ticket.flow)?;
        let waiter = waiters.remove(&ticket.place)?;
        self.len -= 1;
        if waiters.is_empty() {
            self.flows.remove(&ticket.flow);
            self.turns.retain(|flow| *flow != ticket.flow);
        }
        Some(waiter)
    }

    /// The next one: the oldest of the flow whose turn it is.
    pub fn pop(&mut self) -> Option<W> {
        let flow = self.turns.pop_front()?;
        let waiters = self.flows.get_mut(&flow)?;
        let (_, waiter) = waiters.pop_first()?;
        self.len -= 1;
        if waiters.is_empty() {
            self.flows.remove(&flow);
        } else {
            self.turns.push_back(flow);
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn queue() -> FairQueue<u64> {
        FairQueue::new(Depths { total_max: 8, per_flow_max: 4 })
    }

    #[test]
    fn a_flow_is_served_in_the_order_of_arrival_and_flows_take_turns() {
        let mut queue = queue();
        for (place, flow) in [1, 1, 1, 2, 3].into_iter().enumerate() {
            queue.push(FlowId(flow), Place(place as u64), place as u64);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [0, 3, 4, 1, 2]);
    }

    #[test]
    fn one_that_comes_back_stands_at_its_old_place() {
        let mut queue = queue();
        for place in 0..3 {
            queue.push(FlowId(1), Place(place), place);
        }
        assert_eq!(queue.pop(), Some(0));
        queue.push(FlowId(1), Place(0), 0);
        assert_eq!(queue.pop(), Some(0));
        assert_eq!(queue.pop(), Some(1));
    }

    #[test]
    fn newcomers_are_told_which_bound_they_met() {
        let mut queue = queue();
        for place in 0..4 {
            queue.push(FlowId(1), Place(place), place);
        }
        assert_eq!(queue.room(FlowId(1)), Err(Full::Flow));
        assert_eq!(queue.room(FlowId(2)), Ok(()));
        for place in 4..8 {
            queue.push(FlowId(2), Place(place), place);
        }
        assert_eq!(queue.room(FlowId(3)), Err(Full::Total));
    }

    #[test]
    fn a_ticket_leaves_once() {
        let mut queue = queue();
        let ticket = queue.push(FlowId(1), Place(0), 0);
        assert_eq!(queue.remove(ticket), Some(0));
        assert_eq!(queue.remove(ticket), None);
        assert!(queue.is_empty());
        assert_eq!(queue.pop(), None);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Push { flow: u8 },
        Pop,
        Remove { nth: usize },
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => (0u8..4).prop_map(|flow| Op::Push { flow }),
            2 => Just(Op::Pop),
            1 => (0usize..64).prop_map(|nth| Op::Remove { nth }),
        ]
    }

    proptest! {
        /// The reference model is one list per flow and a list of turns.
        #[test]
        fn it_behaves_like_the_plain_model(ops in proptest::collection::vec(op(), 1..200)) {
            let mut queue = FairQueue::new(Depths { total_max: 1000, per_flow_max: 1000 });
            let mut tickets: Vec<(Ticket, u64)> = Vec::new();
            let mut lists: Vec<(u64, Vec<u64>)> = Vec::new();
            let mut next = 0;
            for op in ops {
                match op {
                    Op::Push { flow } => {
                        let flow = u64::from(flow);
                        tickets.push((queue.push(FlowId(flow), Place(next), next), next));
                        match lists.iter_mut().find(|(id, _)| *id == flow) {
                            Some((_, list)) => list.push(next),
                            None => lists.push((flow, vec![next])),
                        }
                        next += 1;
                    }
                    Op::Pop => {
                        let want = if lists.is_empty() { None } else {
                            let (flow, mut list) = lists.remove(0);
                            let first = list.remove(0);
                            if !list.is_empty() { lists.push((flow, list)); }
                            Some(first)
                        };
                        prop_assert_eq!(queue.pop(), want);
                    }
                    Op::Remove { nth } => {
                        if tickets.is_empty() { continue; }
                        let (ticket, value) = tickets[nth % tickets.len()];
                        let mut want = None;
                        for (_, list) in &mut lists {
                            if let Some(at) = list.iter().position(|v| *v == value) {
                                want = Some(list.remove(at));
                            }
                        }
                        lists.retain(|(_, list)| !list.is_empty());
                        prop_assert_eq!(queue.remove(ticket), want);
                    }
                }
                prop_assert_eq!(queue.len(), lists.iter().map(|(_, list)| list.len()).sum::<usize>());
            }
        }
    }
}
