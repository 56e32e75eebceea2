{{- define "farm.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "farm.labels" -}}
app.kubernetes.io/name: farm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* The labels that select one service's pods: a dict of root and service. */ -}}
{{- define "farm.selector" -}}
app.kubernetes.io/name: farm
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .service }}
{{- end }}

{{- define "farm.secret" -}}
{{ .Values.existingSecret | default (printf "%s-secrets" (include "farm.name" .)) }}
{{- end }}

{{- define "farm.controlImage" -}}
{{ .Values.image.control.repository }}:{{ .Values.image.control.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "farm.workerImage" -}}
{{ .Values.image.worker.repository }}:{{ .Values.image.worker.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* What every container of the farm has in its environment. */ -}}
{{- define "farm.environment" -}}
envFrom:
  - configMapRef: {name: {{ include "farm.name" . }}-settings}
  - secretRef: {name: {{ include "farm.secret" . }}}
{{- end }}

{{- define "farm.containerSecurity" -}}
securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, readOnlyRootFilesystem: true}
{{- end }}

{{- /* What a pod's spec takes from the values: of `pod`, or of `pod` and a pool. */ -}}
{{- define "farm.podOptions" -}}
automountServiceAccountToken: {{ ne (default "" .serviceAccountName) "" }}
{{- with .serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* A pod template of the control plane: a dict of root, service, resources, and optional lines for the container. */ -}}
{{- define "farm.controlPod" -}}
metadata:
  labels:
    {{- include "farm.selector" . | nindent 4 }}
  annotations:
    checksum/settings: {{ toYaml .root.Values.settings | sha256sum }}
    checksum/models: {{ .root.Values.models | sha256sum }}
spec:
  {{- include "farm.podOptions" .root.Values.pod | nindent 2 }}
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .root.Values.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ .grace }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "farm.selector" . | nindent 10 }}
  containers:
    - name: {{ .service }}
      image: {{ include "farm.controlImage" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: {{ toJson .args }}
      {{- include "farm.environment" .root | nindent 6 }}
      {{- with .root.Values.pod.extraEnv }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- include "farm.containerSecurity" .root | nindent 6 }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      {{- with .container }}
      {{- . | nindent 6 }}
      {{- end }}
      volumeMounts:
        - {name: data, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
        {{- if .root.Values.models }}
        - {name: models, mountPath: /etc/farm, readOnly: true}
        {{- end }}
        {{- with .root.Values.pod.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - {name: data, emptyDir: {}}
    - {name: tmp, emptyDir: {}}
    {{- if .root.Values.models }}
    - name: models
      configMap: {name: {{ include "farm.name" .root }}-models}
    {{- end }}
    {{- with .root.Values.pod.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
