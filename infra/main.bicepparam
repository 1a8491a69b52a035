// The parameters of main.bicep from the environment, where azd has the values of `azd env set`. Lists and objects are JSON.
using './main.bicep'

param environmentName = readEnvironmentVariable('AZURE_ENV_NAME', 'llamaxing')
param location = readEnvironmentVariable('AZURE_LOCATION', 'location')
param deployerId = readEnvironmentVariable('AZURE_PRINCIPAL_ID', '')
param deployerType = readEnvironmentVariable('AZURE_PRINCIPAL_TYPE', 'User')

param authMethod = readEnvironmentVariable('AUTH_METHOD', 'apikey')
param loggingClient = readEnvironmentVariable('LOGGING_CLIENT', 'none')
param observabilityClient = readEnvironmentVariable('OBSERVABILITY_CLIENT', 'none')
param settings = json(readEnvironmentVariable('SETTINGS', '{}'))
param secretNames = json(readEnvironmentVariable('SECRETS', '{}'))
param openAiAccounts = json(readEnvironmentVariable('OPENAI_ACCOUNTS', '[]'))

param perInstanceConcurrency = int(readEnvironmentVariable('PER_INSTANCE_CONCURRENCY', '100'))
param alwaysReadyInstances = int(readEnvironmentVariable('ALWAYS_READY_INSTANCES', '2'))
param maximumInstances = int(readEnvironmentVariable('MAXIMUM_INSTANCES', '100'))
param instanceMemoryMB = int(readEnvironmentVariable('INSTANCE_MEMORY_MB', '2048'))
param pythonVersion = readEnvironmentVariable('PYTHON_VERSION', '3.13')
param rollingUpdates = bool(readEnvironmentVariable('ROLLING_UPDATES', 'true'))
param zoneRedundant = bool(readEnvironmentVariable('ZONE_REDUNDANT', 'false'))

param virtualNetwork = bool(readEnvironmentVariable('VIRTUAL_NETWORK', 'false'))
param privateGateway = bool(readEnvironmentVariable('PRIVATE_GATEWAY', 'false'))
param allowedRanges = json(readEnvironmentVariable('ALLOWED_RANGES', '[]'))
param allowedServiceTags = json(readEnvironmentVariable('ALLOWED_SERVICE_TAGS', '[]'))
param allowedSubnets = json(readEnvironmentVariable('ALLOWED_SUBNETS', '[]'))
param frontDoorId = readEnvironmentVariable('FRONT_DOOR_ID', '')
param operatorRanges = json(readEnvironmentVariable('OPERATOR_RANGES', '[]'))

param easyAuthClientId = readEnvironmentVariable('EASY_AUTH_CLIENT_ID', '')
param easyAuthAudiences = json(readEnvironmentVariable('EASY_AUTH_AUDIENCES', '[]'))
param easyAuthApplications = json(readEnvironmentVariable('EASY_AUTH_APPLICATIONS', '[]'))

param cosmos = bool(readEnvironmentVariable('COSMOS', 'false'))
param keepDays = int(readEnvironmentVariable('KEEP_DAYS', '0'))
param alertEmail = readEnvironmentVariable('ALERT_EMAIL', '')
param oldestRecord = int(readEnvironmentVariable('OLDEST_RECORD', '900'))
