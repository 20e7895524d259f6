-- A database and a user of its own for each of our services; safe to run again. The app's door is open to people, so its
-- password is not the one that opens the others.
\set password `cat /run/secrets/postgres_password`
\set app_password `cat /run/secrets/app_database_password`
SELECT format('CREATE ROLE %I LOGIN', name)
  FROM unnest(ARRAY['airflow', 'mlflow', 'spira_app']) AS name
 WHERE name NOT IN (SELECT rolname FROM pg_roles) \gexec
SELECT format('ALTER ROLE %I PASSWORD %L', name, :'password') FROM unnest(ARRAY['airflow', 'mlflow']) AS name \gexec
SELECT format('ALTER ROLE spira_app PASSWORD %L', :'app_password') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', name, name)
  FROM unnest(ARRAY['airflow', 'mlflow', 'spira_app']) AS name
 WHERE name NOT IN (SELECT datname FROM pg_database) \gexec
REVOKE CONNECT ON DATABASE airflow, mlflow, spira_app FROM PUBLIC;
