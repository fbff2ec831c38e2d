{{- define "tidegate.name" -}}
{{- /* A release may be called `a.b` or `1`, a Service may not. */}}
{{- $release := .Release.Name | replace "." "-" }}
{{- if regexMatch "^[0-9]" $release }}{{ $release = printf "r%s" $release | trunc 53 | trimSuffix "-" }}{{ end }}
{{- if contains .Chart.Name $release }}{{ $release }}{{ else }}{{ printf "%s-%s" $release .Chart.Name }}{{ end }}
{{- end }}

{{- define "tidegate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "tidegate.labels" -}}
{{ include "tidegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* One replica's share of a limit of the whole account. */}}
{{- define "tidegate.share" -}}
{{- $share := div (int64 .value) (int64 .replicas) }}
{{- if lt $share 1 }}{{ fail (printf "upstream.%s is %v, which cannot be divided among %v replicas: lower `replicas`" .name .value .replicas) }}{{ end }}
{{- $share }}
{{- end }}

{{- define "tidegate.config" -}}
{{- $config := dict "listen" "0.0.0.0:8080" "admin" "0.0.0.0:9090" }}
{{- $_ := set $config "drain" (dict "delay" (printf "%ds" (int64 .Values.drain.delaySeconds)) "max" (printf "%ds" (int64 .Values.drain.maxSeconds))) }}
{{- $own := .Values.config | default dict }}
{{- if $own.upstreams }}
{{- range $name := list "url" "ceiling" "rpm" "tpm" }}
{{- if get $.Values.upstream $name }}{{ fail (printf "upstream.%s goes into config.upstreams, which is given and taken as it is" $name) }}{{ end }}
{{- end }}
{{- else }}
{{- $upstream := dict "name" "api" "preset" .Values.upstream.preset }}
{{- $_ := set $upstream "url" (required "upstream.url is required: the API to stand in front of, for example https://api.openai.com" (.Values.upstream.url | default nil)) }}
{{- range $name := list "ceiling" "rpm" "tpm" }}
{{- with get $.Values.upstream $name }}
{{- $_ := set $upstream $name (include "tidegate.share" (dict "name" $name "value" . "replicas" $.Values.replicas) | int64) }}
{{- end }}
{{- end }}
{{- $_ := set $config "upstreams" (list $upstream) }}
{{- end }}
{{- mustMergeOverwrite $config (deepCopy $own) | toYaml }}
{{- end }}

{{/* What clients speak; the admin port, which the probes ask, is plain in any case. */}}
{{- define "tidegate.scheme" -}}
{{- if (.Values.config | default dict).tls }}https{{ else }}http{{ end }}
{{- end }}

{{/* Where it has to connect to: the ports of the addresses it is given, and those of upstreamPorts. */}}
{{- define "tidegate.ports" -}}
{{- $config := include "tidegate.config" . | fromYaml }}
{{- $urls := list ($config.otlp | default dict).endpoint }}
{{- range $config.upstreams }}{{ $urls = append $urls .url }}{{ end }}
{{- range .Values.env }}{{ if hasPrefix "OTEL_EXPORTER_OTLP" .name }}{{ $urls = append $urls .value }}{{ end }}{{ end }}
{{- $ports := list }}
{{- range .Values.networkPolicy.upstreamPorts }}{{ $ports = append $ports (int64 .) }}{{ end }}
{{- range $url := $urls }}
{{- if regexMatch "^https?://[^$]*$" ($url | default "") }}
{{- $port := regexReplaceAll "^https?://(?:\\[[^\\]]*\\]|[^/:]*)(?::([0-9]+))?.*$" $url "${1}" }}
{{- $ports = append $ports ($port | default (ternary 443 80 (hasPrefix "https:" $url)) | int64) }}
{{- end }}
{{- end }}
{{- $ports | uniq | sortAlpha | toJson }}
{{- end }}

{{/* Of what a running process does not take: listen and admin never change here. */}}
{{- define "tidegate.restart" -}}
{{- $config := include "tidegate.config" . | fromYaml }}
{{- $limits := omit ($config.limits | default dict) "accounts_max" }}
{{- dict "threads" $config.threads "limits" $limits "otlp" $config.otlp "tls" (not $config.tls) | toJson | sha256sum }}
{{- end }}
