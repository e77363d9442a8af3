-- Health of Tasuki's kinds for Argo CD: resource.customizations.health.tasuki.dev_<Kind> in argocd-cm.
-- Uncovered tasks are no fault of the resource: they are read from coverage, and never make an application Degraded.
local status = obj.status
if status == nil or status.conditions == nil then
  return { status = "Progressing", message = "the controller has not looked at it yet" }
end
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "the controller has not looked at this version yet" }
end

local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end
local function is(kind, value)
  return found[kind] ~= nil and found[kind].status == value
end
local function words(kind)
  local condition = found[kind]
  return (condition.reason or kind) .. ": " .. (condition.message or "")
end

if is("Accepted", "False") then
  return { status = "Degraded", message = words("Accepted") }
end
if is("Stalled", "True") then
  return { status = "Degraded", message = words("Stalled") }
end
if obj.spec ~= nil and obj.spec.rollout ~= nil and (obj.spec.rollout.paused or obj.spec.rollout.frozen) then
  return { status = "Suspended", message = "the rollout is paused in spec.rollout" }
end
if is("Reconciling", "True") then
  return { status = "Progressing", message = words("Reconciling") }
end
if is("Ready", "False") then
  return { status = "Degraded", message = words("Ready") }
end
if is("Ready", "True") then
  return { status = "Healthy", message = found["Ready"].message or "" }
end
-- Kinds without a rollout are judged once, by `Accepted`.
if is("Accepted", "True") then
  return { status = "Healthy", message = found["Accepted"].message or "" }
end
return { status = "Progressing", message = "not judged yet" }
