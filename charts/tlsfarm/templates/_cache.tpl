{{/* Name of the session cache's objects. */}}
{{- define "tlsfarm.cache.fullname" -}}
{{- include "tlsfarm.fullname" . }}-cache
{{- end }}

{{- define "tlsfarm.cache.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tlsfarm.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: cache
{{- end }}

{{- define "tlsfarm.cache.labels" -}}
{{ include "tlsfarm.cache.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end }}

{{/* DNS name that the certificate of every cache bears. */}}
{{- define "tlsfarm.cache.serverName" -}}
cache.{{ include "tlsfarm.fullname" . }}.{{ .Release.Namespace }}.tlsfarm
{{- end }}

{{- define "tlsfarm.cache.tlsSecret" -}}
{{- default (printf "%s-tls" (include "tlsfarm.cache.fullname" .)) .Values.cache.tls.secretName }}
{{- end }}

{{- define "tlsfarm.cache.config" -}}
version: 1
listen:
  tcp: "[::]:6379"
  admin: "[::]:9090"
sizeMiB: {{ .Values.cache.sizeMiB }}
defaultLifetime: {{ .Values.cache.defaultLifetime }}
{{- if .Values.cache.password.secretName }}
password: /etc/tlsfarm/password/{{ .Values.cache.password.key }}
{{- end }}
peers:
  listen: "[::]:7443"
  members:
    service:
      name: {{ printf "%s-peers" (include "tlsfarm.cache.fullname" .) | quote }}
      port: 7443
      portName: cache-peers
  serverName: {{ include "tlsfarm.cache.serverName" . | quote }}
  certificate: /etc/tlsfarm/cache/tls.crt
  key: /etc/tlsfarm/cache/tls.key
  authority: /etc/tlsfarm/cache/ca.crt
{{- end }}
