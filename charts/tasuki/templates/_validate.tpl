{{/* Combinations that the schema cannot refuse. Included by the Deployment. */}}
{{- define "tasuki.validate" -}}
{{- if eq .Values.agent.namespace .Release.Namespace -}}
{{- fail (printf "agent.namespace is the release namespace %s: agents are privileged and need a namespace of their own; name another one" .Release.Namespace) -}}
{{- end -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.store.existingSecret) -}}
{{- fail (printf "replicas is %d and store.existingSecret is empty: SQLite serves one controller; name a Secret with the URL of a PostgreSQL database, or set replicas to 1" (int .Values.replicas)) -}}
{{- end -}}
{{- if and (gt (int .Values.replicas) 1) .Values.persistence.enabled (has "ReadWriteOnce" .Values.persistence.accessModes) -}}
{{- fail "persistence.enabled with more than one replica: a ReadWriteOnce volume serves one pod; with PostgreSQL the state directory needs no volume" -}}
{{- end -}}
{{- if and .Values.enforce .Values.defaultMonitor (not .Values.agent.image.digest) -}}
{{- fail "enforce is on and agent.image.digest is empty: agents run by digest only; name the digest of the agent's image index, or set defaultMonitor to false and name it in a RuntimeMonitor of your own" -}}
{{- end -}}
{{- if and .Values.sidecars.live (not .Values.enforce) -}}
{{- fail "sidecars.live is on and enforce is off: a sidecar changes a pod; set enforce to true, or leave sidecars.live off" -}}
{{- end -}}
{{- end }}
