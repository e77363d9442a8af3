{{/* Environment of the controller: `tasuki run --help` says what each does. */}}
{{- define "tasuki.env" -}}
- name: TASUKI_KUBERNETES
  value: "true"
- name: TASUKI_CLUSTER
  value: {{ .Values.clusterName | quote }}
- name: TASUKI_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: TASUKI_AGENT_NAMESPACE
  value: {{ .Values.agent.namespace }}
{{- if .Values.sidecars.live }}
- name: TASUKI_LIVE_SIDECARS
  value: "true"
{{- end }}
- name: TASUKI_DEFAULT_MONITOR
  value: {{ .Values.defaultMonitor | quote }}
- name: TASUKI_DEFAULT_MONITOR_MODE
  value: {{ ternary "Enforce" "Observe" .Values.enforce }}
{{- if .Values.agent.image.digest }}
- name: TASUKI_DEFAULT_AGENT_VERSION
  value: {{ .Values.agent.version | default .Chart.AppVersion | quote }}
- name: TASUKI_DEFAULT_AGENT_IMAGE
  value: {{ printf "%s@%s" .Values.agent.image.repository .Values.agent.image.digest }}
{{- end }}
- name: TASUKI_LISTEN
  value: {{ printf "%s:8080" .Values.listenAddress | quote }}
- name: TASUKI_WEB_HOST
  value: {{ concat (list "tasuki" (printf "tasuki.%s" .Release.Namespace) (include "tasuki.webHost" .)) .Values.web.hosts | join "," }}
{{- if .Values.web.open }}
- name: TASUKI_WEB_OPEN
  value: "true"
{{- end }}
- name: TASUKI_GATEWAY_LISTEN
  value: {{ printf "%s:8443" .Values.listenAddress | quote }}
- name: TASUKI_GATEWAY_URL
  value: {{ .Values.gateway.url | default (printf "https://tasuki-gateway.%s.svc:8443" .Release.Namespace) }}
{{- with .Values.gateway.proxies }}
- name: TASUKI_GATEWAY_PROXY
  value: {{ join "," . }}
{{- end }}
{{- if .Values.gateway.tlsSecret }}
- name: TASUKI_GATEWAY_CERT
  value: /etc/tasuki/gateway/tls.crt
- name: TASUKI_GATEWAY_KEY
  value: /etc/tasuki/gateway/tls.key
{{- end }}
- name: TASUKI_STATE_DIR
  value: /var/lib/tasuki
{{- with .Values.store.existingSecret }}
- name: TASUKI_STORE
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.store.secretKey }}
{{- end }}
- name: TASUKI_KEEP_FINDINGS
  value: {{ .Values.store.keepFindings }}
- name: TASUKI_MAX_FINDINGS
  value: {{ .Values.store.maxFindings | int | quote }}
- name: TASUKI_LOG
  value: {{ .Values.log.level | quote }}
- name: TASUKI_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
