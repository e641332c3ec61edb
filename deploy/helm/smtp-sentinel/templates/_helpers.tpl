{{/* The name of every object; the release's, unless it is the usual one. */}}
{{- define "smtp-sentinel.name" -}}
{{- if contains "smtp-sentinel" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-smtp-sentinel" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "smtp-sentinel.selector" -}}
app.kubernetes.io/name: smtp-sentinel
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "smtp-sentinel.labels" -}}
{{ include "smtp-sentinel.selector" . }}
app.kubernetes.io/part-of: smtp-sentinel
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The text of the configuration file. */}}
{{- define "smtp-sentinel.config" -}}
{{- if .Values.config -}}
{{ .Values.config }}
{{- else -}}
{{- .Files.Get "files/config.toml" | replace "mode = \"observe\"\n" (printf "mode = %q\n" .Values.mode) -}}
{{- end -}}
{{- end -}}
