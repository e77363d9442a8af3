//! EventBridge by SQS, ECS sweeps, agent reports: into changes of the fleet.
