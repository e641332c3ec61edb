//! Names each thing that the actuator is about to do to the world, just before it does it.
//!
//! Two uses. A failure is reported with the step at which it happened, without each function having to say so. And
//! a test can make any step fail, or die there, without knowing which steps there are: it records the names of one
//! good run and then goes through them. In production there is no hook and a step costs an assignment.

use std::io;

/// Called with the name of the step that is about to be taken; an error is taken as that step's failure.
pub type Hook = Box<dyn FnMut(&'static str) -> io::Result<()> + Send>;

/// Where the actuator is.
#[derive(Default)]
pub struct Steps {
    last: &'static str,
    hook: Option<Hook>,
}

impl Steps {
    /// Steps that a test listens to.
    pub fn hooked(hook: Hook) -> Self {
        Self {
            last: "",
            hook: Some(hook),
        }
    }

    /// About to do `name`.
    pub(super) fn step(&mut self, name: &'static str) -> io::Result<()> {
        self.last = name;
        self.hook.as_mut().map_or(Ok(()), |hook| hook(name))
    }

    /// Back to a step taken earlier: the one that failed, after the cleaning up.
    pub(super) fn resume(&mut self, name: &'static str) {
        self.last = name;
    }

    /// The step taken last.
    pub(super) fn last(&self) -> &'static str {
        self.last
    }
}
