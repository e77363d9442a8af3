//! Nothing but a home for tests that need both the controller and the agent, which never know each other.
