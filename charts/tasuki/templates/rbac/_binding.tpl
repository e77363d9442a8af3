{{/* Binding of the controller to a Role or ClusterRole: (dict "root" $ "kind" "Role" "name" … "namespace" …). */}}
{{- define "tasuki.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .kind }}Binding
metadata:
  name: {{ .name }}
  {{- with .namespace }}
  namespace: {{ . }}
  {{- end }}
  labels: {{- include "tasuki.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .name }}
subjects:
  {{- include "tasuki.subjects" .root | nindent 2 }}
{{- end }}
